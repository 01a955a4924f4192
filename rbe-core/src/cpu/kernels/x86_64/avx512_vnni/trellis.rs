//! AVX-512's products with a trellis, an instruction for those of a code.

use super::isa::Vnni;
use crate::cpu::kernels::x86_64::avx512_bw::isa::Avx512;
use crate::cpu::kernels::x86_64::avx512_bw::trellis::compile_trellis;

compile_trellis!("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt,avx512vnni", Vnni, with_vnni);
