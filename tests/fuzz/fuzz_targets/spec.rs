#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| carob_fuzz_bodies::spec::spec(data));
