//! Which device computes, by name.
//!
//! Invariant: a name that cannot be had is an error that says why; only `auto` falls back.

use candle_core::Device;

use super::ComputeError;

/// The device of a name: `cpu` is hone's own kernels (`None`); `cuda`, `cuda:1`, `metal`, `metal:1` a
/// GPU, if this build has the feature; `auto` the first GPU of such a build, or else `cpu`;
/// `candle-cpu` candle on the processor, which tests compare with.
///
/// # Errors
/// An unknown name, a build without the feature, or a machine without the device.
pub fn open_device(name: &str) -> Result<Option<Device>, ComputeError> {
    let (kind, index) = name.split_once(':').unwrap_or((name, "0"));
    let unknown = || ComputeError::NoDevice {
        name: name.to_owned(),
        why: "there are auto, cpu, cuda, cuda:N, metal and metal:N".to_owned(),
    };
    let index: usize = index.parse().map_err(|_| unknown())?;
    match kind {
        "auto" => Ok(gpu("cuda", 0, name).or_else(|_| gpu("metal", 0, name)).ok()),
        "cpu" => Ok(None),
        "candle-cpu" => Ok(Some(Device::Cpu)),
        "cuda" | "metal" => gpu(kind, index, name).map(Some),
        _ => Err(unknown()),
    }
}

/// The GPUs that this build can use.
const BUILT: &[&str] = &[
    #[cfg(feature = "cuda")]
    "cuda",
    #[cfg(feature = "metal")]
    "metal",
];

fn gpu(kind: &str, index: usize, name: &str) -> Result<Device, ComputeError> {
    if !BUILT.contains(&kind) {
        let why = format!("this hone was built without it (cargo build --features {kind})");
        return Err(ComputeError::NoDevice { name: name.to_owned(), why });
    }
    let found = if kind == "cuda" { Device::new_cuda(index) } else { Device::new_metal(index) };
    found.map_err(|e| ComputeError::NoDevice { name: name.to_owned(), why: e.to_string() })
}
