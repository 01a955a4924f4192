//! Where a model runs.

use crate::language::Language;
use crate::print;
use anyhow::Context;
use candle_core::{DType, Device};
use candle_rbe::archive::{Archive, Dtype};
use clap::Args;
use std::path::Path;

/// Option of the commands that can run a model on a card.
#[derive(Args)]
pub(crate) struct DeviceArgs {
    /// Where the model runs: cpu, cuda, or cuda:N for the N-th card, counted from 0. Unless it is said: the first card, where this program
    /// is built for one (--features cuda) and there is one
    #[arg(long, value_name = "DEVICE", value_parser = place)]
    device: Option<Place>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Cpu,
    Card(usize),
}

fn place(text: &str) -> Result<Place, String> {
    let card = |text: &str| text.parse().ok().map(Place::Card);
    match text.split_once(':') {
        None if text == "cpu" => Some(Place::Cpu),
        None if text == "cuda" => Some(Place::Card(0)),
        Some(("cuda", number)) => card(number),
        _ => None,
    }
    .ok_or_else(|| "it is cpu, cuda or cuda:N".to_owned())
}

impl DeviceArgs {
    /// The model there, as texts are written: on the CPU in F32, on a card in BF16 where its file has that type, else in F16.
    pub(crate) fn open(&self, path: &Path) -> anyhow::Result<Language> {
        let device = self.device()?;
        if device.is_cpu() {
            return Language::open(path);
        }
        let is_bf16 = Archive::open(path)?.entries().any(|entry| entry.dtype == Dtype::BF16);
        let dtype = if is_bf16 { DType::BF16 } else { DType::F16 };
        print::note(&format!("on the CUDA device, in {dtype:?}"));
        Language::open_on(path, dtype, &device)
    }

    /// Several models there in F32, to be compared.
    pub(crate) fn open_to_compare<const N: usize>(&self, paths: [&Path; N]) -> anyhow::Result<[Language; N]> {
        let device = self.device()?;
        if !device.is_cpu() {
            print::note("on the CUDA device, in F32");
        }
        let opened = paths.map(|path| Language::open_on(path, DType::F32, &device));
        let opened = opened.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        Ok(opened.try_into().unwrap_or_else(|_| unreachable!("every path has a model")))
    }

    fn device(&self) -> anyhow::Result<Device> {
        match self.device {
            Some(Place::Cpu) => Ok(Device::Cpu),
            Some(Place::Card(_)) if !cfg!(feature = "cuda") => {
                anyhow::bail!(
                    "this program is built without CUDA; build it by `cargo build --release --features cli,cuda`"
                )
            }
            Some(Place::Card(number)) => {
                Device::new_cuda(number).with_context(|| format!("cannot run on CUDA device {number}"))
            }
            None if cfg!(feature = "cuda") => Ok(Device::new_cuda(0).unwrap_or_else(|error| {
                print::note(&format!("on the CPU: there is no CUDA device to be had ({error})"));
                Device::Cpu
            })),
            None => Ok(Device::Cpu),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read() {
        for (text, expected) in [
            ("cpu", Some(Place::Cpu)),
            ("cuda", Some(Place::Card(0))),
            ("cuda:3", Some(Place::Card(3))),
            ("cuda:", None),
            ("cuda:x", None),
            ("cpu:0", None),
            ("gpu", None),
        ] {
            assert_eq!(place(text).ok(), expected, "{text}");
        }
    }
}
