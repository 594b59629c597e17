#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hone_shared_fuzz::feedback(bytes));
