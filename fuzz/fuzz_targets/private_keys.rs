#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| stead_fuzz::private_keys(data));
