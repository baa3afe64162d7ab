//! Counts what some threads allocate, and how much they copy within memory. That depends on the program and hardly on how fast
//! or busy the machine is. A test binary that uses this crate has its allocator, `memcpy` and `memmove`; it needs glibc.
//!
//! What C code gets from `malloc` is not counted, nor are copies that the compiler has put in line: they are short.
#![expect(unsafe_code, reason = "an allocator and memcpy are made of it")]
#![expect(clippy::print_stdout, reason = "a test says what it has counted")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::c_void;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// From how many bytes on a copy counts: shorter ones move a program's own values, longer ones what it carries.
pub const LONG: usize = 1024;

/// What was done in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Allocations, and changes of their sizes.
    pub allocations: u64,
    /// Bytes in copies of at least [`LONG`].
    pub copied: u64,
}

/// Counts until it is asked.
#[derive(Debug)]
#[must_use]
pub struct Counting(());

/// How the names of the threads begin that count.
static THREADS: OnceLock<&str> = OnceLock::new();
static ON: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static COPIED: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Whether this one counts, if it has been looked at.
    static COUNTS: Cell<Option<bool>> = const { Cell::new(None) };
}

impl Counting {
    /// Begins, in the threads whose names begin so: always the same ones in a process, and one count at a time.
    ///
    /// # Panics
    /// Otherwise.
    pub fn of(threads: &'static str) -> Self {
        assert_eq!(*THREADS.get_or_init(|| threads), threads, "always the same threads");
        ALLOCATIONS.store(0, Ordering::SeqCst);
        COPIED.store(0, Ordering::SeqCst);
        assert!(!ON.swap(true, Ordering::SeqCst), "one count at a time");
        Self(())
    }

    /// What they have done since it began.
    #[must_use]
    pub fn end(self) -> Counts {
        ON.store(false, Ordering::SeqCst);
        Counts { allocations: ALLOCATIONS.load(Ordering::SeqCst), copied: COPIED.load(Ordering::SeqCst) }
    }
}

impl Counts {
    /// Prints what each of `many` took, and fails where that is beyond these bounds.
    ///
    /// # Panics
    /// As said.
    #[track_caller]
    pub fn hold(self, what: &str, many: u64, allocations: f64, copied: f64) {
        let each = |count: u64| count as f64 / many as f64;
        let found = (each(self.allocations), each(self.copied));
        let said = format!("{what}: {:.2} allocations, {:.0} bytes copied", found.0, found.1);
        println!("{said}");
        assert!(found.0 <= allocations && found.1 <= copied, "{said}; {allocations} and {copied} are the most");
    }
}

/// Adds to a count if the thread is one of those. Allocates nothing.
fn add(to: &AtomicU64, amount: u64) {
    if !ON.load(Ordering::Relaxed) {
        return;
    }
    // A thread that is ending has none any more, and is none of those.
    let counts = COUNTS.try_with(|counts| match counts.get() {
        Some(known) => known,
        None => {
            let known = is_one();
            counts.set(Some(known));
            known
        }
    });
    if counts.unwrap_or_default() {
        to.fetch_add(amount, Ordering::Relaxed);
    }
}

fn is_one() -> bool {
    // What the kernel keeps of a thread's name, with the zero behind it.
    let mut name = [0_u8; 16];
    // SAFETY: the kernel writes at most 16 bytes, which are there.
    let told = unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    told == 0 && THREADS.get().is_some_and(|threads| name.starts_with(threads.as_bytes()))
}

/// The system's allocator, counted.
struct Counted;

#[global_allocator]
static ALLOCATOR: Counted = Counted;

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(&ALLOCATIONS, 1);
        // SAFETY: the caller promises what this needs.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(&ALLOCATIONS, 1);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        add(&ALLOCATIONS, 1);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

unsafe extern "C" {
    // glibc's own, which also look whether the copy has room.
    fn __memcpy_chk(to: *mut c_void, from: *const c_void, length: usize, room: usize) -> *mut c_void;
    fn __memmove_chk(to: *mut c_void, from: *const c_void, length: usize, room: usize) -> *mut c_void;
}

/// C's, counted.
///
/// # Safety
/// As C says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(to: *mut c_void, from: *const c_void, length: usize) -> *mut c_void {
    if length >= LONG {
        add(&COPIED, length as u64);
    }
    // SAFETY: the caller promises what this needs.
    unsafe { __memcpy_chk(to, from, length, usize::MAX) }
}

/// C's, counted.
///
/// # Safety
/// As C says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memmove(to: *mut c_void, from: *const c_void, length: usize) -> *mut c_void {
    if length >= LONG {
        add(&COPIED, length as u64);
    }
    // SAFETY: the caller promises what this needs.
    unsafe { __memmove_chk(to, from, length, usize::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_thread_allocates_and_copies_is_counted_and_nothing_else() {
        let counted = |name: &str, length: usize| {
            let work = move || {
                let many = std::hint::black_box(vec![1_u8; length]);
                let counting = Counting::of("one-");
                let copy = std::hint::black_box(many.clone());
                let counts = counting.end();
                drop(copy);
                counts
            };
            let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
            thread.and_then(|thread| thread.join().map_err(|_| std::io::Error::other("it panicked")))
        };
        let count = |name, length| counted(name, length).ok();
        assert_eq!(count("one-1", 1 << 20), Some(Counts { allocations: 1, copied: 1 << 20 }));
        assert_eq!(count("one-2", LONG - 1), Some(Counts { allocations: 1, copied: 0 }));
        assert_eq!(count("another", 1 << 20), Some(Counts { allocations: 0, copied: 0 }));
    }
}
