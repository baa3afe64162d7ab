//! Replays every corpus through its target, then a bounded set of mutations of it, the same ones every time.
#![expect(clippy::panic, clippy::unwrap_used, reason = "a test that cannot run, or a broken promise, fails")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use stillmesh_fuzz_targets::{TARGETS, Target};

/// Mutations of each target.
const MUTATIONS: usize = 1000;

/// The files of a target's corpus, by name.
fn corpus(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let entries = std::fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// Runs a target; a broken promise is told with the bytes that broke it.
fn run(target: &Target, what: &str, bytes: &[u8]) -> bool {
    catch_unwind(AssertUnwindSafe(|| (target.run)(bytes))).unwrap_or_else(|_| {
        let shown: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        panic!("{}: {what}: broken by the bytes {shown}", target.name)
    })
}

#[test]
fn every_target_has_seeds_that_mean_what_their_names_say() {
    for target in TARGETS {
        let files = corpus(target);
        let named = |prefix: &str| {
            let has = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(prefix);
            files.iter().filter(|(path, _)| has(path)).collect::<Vec<_>>()
        };
        let (good, bad) = (named("ok-"), named("bad-"));
        assert!(good.len() >= 2 && !bad.is_empty(), "{}: seeds of both kinds are needed", target.name);
        assert_eq!(good.len() + bad.len(), files.len(), "{}: ok-… and bad-… are the names", target.name);
        for (expected, seeds) in [(true, good), (false, bad)] {
            for (path, bytes) in seeds {
                assert!(bytes.len() <= target.longest, "{}", path.display());
                assert_eq!(run(target, "a seed", bytes), expected, "{}", path.display());
            }
        }
    }
}

#[test]
fn no_mutation_of_a_seed_breaks_a_promise() {
    for target in TARGETS {
        let seeds: Vec<Vec<u8>> = corpus(target).into_iter().map(|(_, bytes)| bytes).collect();
        let mut random = Random(0x5eed_0000_0000_0001);
        for number in 0..MUTATIONS {
            let mut bytes = seeds[random.below(seeds.len())].clone();
            for _ in 0..=random.below(4) {
                mutate(&mut bytes, &seeds, &mut random);
            }
            bytes.truncate(target.longest);
            run(target, &format!("mutation {number}"), &bytes);
        }
    }
}

fn mutate(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
    let at = random.below(bytes.len() + 1);
    let end = (at + 1 + random.below(16)).min(bytes.len());
    let other = &seeds[random.below(seeds.len())];
    match random.below(7) {
        0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
        1 if at < bytes.len() => bytes[at] = [0, 0xff, 0x7f, 0x80, b'\n', b'"'][random.below(6)],
        2 => bytes.insert(at, random.below(256) as u8),
        3 if at < end => drop(bytes.drain(at..end)),
        4 if at < end => bytes.extend_from_within(at..end),
        5 => bytes.truncate(at),
        _ => {
            // The head of one seed and the tail of another.
            bytes.truncate(at);
            bytes.extend_from_slice(&other[random.below(other.len() + 1)..]);
        }
    }
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % end.max(1)
    }
}
