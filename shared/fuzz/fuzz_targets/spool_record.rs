#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hone_shared_fuzz::spool_record(bytes));
