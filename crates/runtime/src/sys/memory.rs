//! Memory that a process has and does not use just now, given back to the kernel.

use std::io;
use std::ops::Range;
use std::ptr;

/// Lets go of what this process has mapped of its own program and only reads: instructions and constants. What is used
/// again comes back by itself, from the kernel's page cache as long as the kernel keeps it there, else from the file.
/// Returns how many bytes were let go.
///
/// A program's start needs much that is not used again, and the kernel maps 16 pages for each that is touched; all of it
/// counts as the process's memory. What has pages of the process's own, as those that the loader has relocated, is left alone.
///
/// Errors: `/proc` is not to be had, or the process has locked its memory.
pub fn let_go_of_program() -> io::Result<usize> {
    let program = std::fs::read_link("/proc/self/exe")?;
    let mappings = std::fs::read("/proc/self/smaps")?;
    let mut let_go = 0;
    for clean in clean_mappings(&String::from_utf8_lossy(&mappings), &program.to_string_lossy()) {
        let Range { start, end } = clean.addresses;
        // SAFETY: the kernel says that this is a private mapping of the program's file that nobody may write to and in which no
        // page differs from the file: what is read there next is what was there before. Only the loader makes such mappings
        // writable, before anything of ours runs.
        let result =
            unsafe { libc::madvise(ptr::with_exposed_provenance_mut(start), end - start, libc::MADV_DONTNEED) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        let_go += clean.resident;
    }
    Ok(let_go)
}

/// Gives back what allocations have left free, as after something large was read.
pub fn let_go_of_freed() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number; the allocator locks what it looks through.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// A mapping whose pages are all as they are in its file.
#[derive(Debug, PartialEq, Eq)]
struct Clean {
    addresses: Range<usize>,
    /// Bytes of it that are in memory.
    resident: usize,
}

/// A mapping of the program that nobody may write to.
struct Mapping {
    addresses: Range<usize>,
    /// Each `None` until it is said.
    resident: Option<usize>,
    own: Option<usize>,
    swapped: Option<usize>,
}

impl Mapping {
    /// Only what is said to be clean is.
    fn clean(self) -> Option<Clean> {
        let is_clean = (self.own, self.swapped) == (Some(0), Some(0));
        self.resident.filter(|_| is_clean).map(|resident| Clean { addresses: self.addresses, resident })
    }
}

/// Of what `/proc/PID/smaps` tells (proc_pid_smaps(5)): the private mappings of `program` that nobody may write to and that
/// have no pages of their own.
fn clean_mappings(smaps: &str, program: &str) -> Vec<Clean> {
    let mut found = Vec::new();
    let mut current: Option<Mapping> = None;
    for line in smaps.lines() {
        if let Some((addresses, rest)) = heading(line) {
            found.extend(current.take().and_then(Mapping::clean));
            // Rights, offset, device, inode, path.
            let mut words = rest.splitn(5, ' ');
            let is_read_only = words.next().is_some_and(|rights| rights.contains('p') && !rights.contains('w'));
            let is_of_program = words.nth(3).is_some_and(|path| path.trim_start() == program);
            current = (is_read_only && is_of_program).then_some(Mapping {
                addresses,
                resident: None,
                own: None,
                swapped: None,
            });
        } else if let (Some(mapping), Some((name, value))) = (&mut current, line.split_once(':')) {
            let bytes = || value.trim().strip_suffix(" kB")?.parse::<usize>().ok()?.checked_mul(1 << 10);
            match name {
                "Rss" => mapping.resident = bytes(),
                "Anonymous" => mapping.own = bytes(),
                "Swap" => mapping.swapped = bytes(),
                _ => {}
            }
        }
    }
    found.extend(current.and_then(Mapping::clean));
    found
}

/// The addresses that a mapping's first line begins with, and the rest of it; `None` for any other line.
fn heading(line: &str) -> Option<(Range<usize>, &str)> {
    let (addresses, rest) = line.split_once(' ')?;
    let (start, end) = addresses.split_once('-')?;
    let [start, end] = [start, end].map(|text| usize::from_str_radix(text, 16).ok());
    Some((start?..end?, rest))
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::os::fd::AsRawFd as _;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn mapping(heading: &str, resident: usize, own: usize, swapped: usize) -> String {
        format!(
            "{heading}\nSize: 4096 kB\nRss: {resident} kB\nAnonymous: {own} kB\nSwap: {swapped} kB\nVmFlags: rd ex mr mw me\n"
        )
    }

    #[test]
    fn only_what_is_as_in_the_programs_file_is_let_go() {
        let all = [
            mapping("1000-2000 r--p 00000000 fe:00 7                    /bin/a program", 4, 0, 0),
            mapping("2000-4000 r-xp 00001000 fe:00 7                    /bin/a program", 8, 0, 0),
            // Relocated by the loader.
            mapping("4000-5000 r--p 00003000 fe:00 7                    /bin/a program", 4, 4, 0),
            mapping("5000-6000 r--p 00004000 fe:00 7                    /bin/a program", 0, 0, 4),
            mapping("6000-7000 rw-p 00005000 fe:00 7                    /bin/a program", 0, 0, 0),
            mapping("7000-8000 r--s 00006000 fe:00 7                    /bin/a program", 4, 0, 0),
            // Of others, and of nobody.
            mapping("8000-9000 r-xp 00000000 fe:00 8                    /lib/other", 4, 0, 0),
            mapping("9000-a000 r--p 00000000 fe:00 8                    /bin/a program (deleted)", 4, 0, 0),
            mapping("a000-b000 r--p 00000000 00:00 0 ", 4, 0, 0),
            // Nothing is said of it.
            "b000-c000 r--p 00007000 fe:00 7                    /bin/a program\nRss: 4 kB\n".to_owned(),
            mapping("c000-d000 r--p 00008000 fe:00 7                    /bin/a program", 0, 0, 0),
        ];
        let found = clean_mappings(&all.concat(), "/bin/a program");
        let found: Vec<_> = found.into_iter().map(|clean| (clean.addresses, clean.resident)).collect();
        assert_eq!(found, [(0x1000..0x2000, 4096), (0x2000..0x4000, 8192), (0xc000..0xd000, 0)]);
    }

    /// Bytes of the clean mappings of this program that are in memory.
    fn resident() -> usize {
        let program = std::fs::read_link("/proc/self/exe").unwrap();
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        clean_mappings(&smaps, &program.to_string_lossy()).iter().map(|clean| clean.resident).sum()
    }

    /// A page of this program's file as the loader leaves it where it relocates something: changed, then read-only.
    fn relocated() -> &'static [u8] {
        let program = std::fs::File::open("/proc/self/exe").unwrap();
        // SAFETY: a new private mapping of a page that the file has; it is written to before anybody else knows of it, and never
        // unmapped.
        unsafe {
            let (rights, page) = (libc::PROT_READ | libc::PROT_WRITE, 4096);
            let at = libc::mmap(ptr::null_mut(), page, rights, libc::MAP_PRIVATE, program.as_raw_fd(), 0);
            assert_ne!(at, libc::MAP_FAILED);
            at.cast::<u8>().write_bytes(7, page);
            assert_eq!(libc::mprotect(at, page, libc::PROT_READ), 0);
            std::slice::from_raw_parts(at.cast::<u8>(), page)
        }
    }

    #[test]
    fn a_program_goes_on_without_its_pages_and_keeps_what_is_its_own() {
        static WRITTEN: AtomicUsize = AtomicUsize::new(3);
        static RELOCATED: [fn(&str) -> String; 2] = [str::to_lowercase, str::to_uppercase];
        WRITTEN.fetch_add(1, Ordering::Relaxed);
        let (relocated, heap) = (relocated(), black_box(vec![5_u8; 1 << 20]));
        for _ in 0..3 {
            let before = resident();
            assert!(before > 0);
            let let_go = let_go_of_program().unwrap();
            let_go_of_freed();
            assert!(let_go > 0);
            let texts: Vec<_> = black_box(&RELOCATED).iter().map(|change| change("aB")).collect();
            assert_eq!(texts, ["ab", "AB"]);
            assert_eq!(WRITTEN.load(Ordering::Relaxed), 4);
            assert!(relocated.iter().all(|byte| *byte == 7) && heap.iter().all(|byte| *byte == 5));
        }
    }

    #[test]
    fn what_is_no_such_text_names_no_mapping() {
        for text in [
            "",
            "\n",
            "1000-2000",
            "x-y r--p 0 0 0 p",
            "1000-2000 r--p",
            "Rss: 5 kB",
            "1000-2000 r--p 0 0 0 p\nRss: -1 kB",
        ] {
            assert_eq!(clean_mappings(text, "p"), []);
        }
    }
}
