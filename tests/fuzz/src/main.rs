//! One target under libFuzzer, which brings `main` and its options. `STILLMESH_FUZZ_TARGET` names the target: see `run`.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::Corpus;
use stillmesh_fuzz_targets::{Target, named};

static TARGET: OnceLock<&'static Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| -> Corpus {
    let target = TARGET.get_or_init(|| {
        let name = std::env::var("STILLMESH_FUZZ_TARGET").unwrap_or_default();
        named(&name).unwrap_or_else(|| panic!("STILLMESH_FUZZ_TARGET={name:?} is no target"))
    });
    if bytes.len() > target.longest {
        return Corpus::Reject;
    }
    (target.run)(bytes);
    Corpus::Keep
});
