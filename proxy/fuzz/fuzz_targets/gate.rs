//! Any bytes in any packets, against the framing gate; what is checked stands in [`oracle`]. The
//! gate is compiled alone, so that a run needs seconds and not pingora.

#![no_main]

#[allow(dead_code)]
#[path = "../../src/listen/gate/mod.rs"]
mod gate;
mod oracle;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((seed, stream)) = input.split_first_chunk::<8>() else { return };
    oracle::check(stream, u64::from_le_bytes(*seed));
});
