//! AVX-512's products of planes, an instruction each.

use super::isa::Vnni;
use crate::cpu::kernels::x86_64::avx512_bw::isa::Avx512;
use crate::cpu::kernels::x86_64::avx512_bw::planes::compile_planes;

compile_planes!(
    "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt,avx512vnni",
    Vnni,
    with_vnni,
    crate::cpu::kernels::generic::dot::dot
);
