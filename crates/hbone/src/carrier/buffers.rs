//! Buffers of a thread: taken while bytes are moved, given back when nothing waits, so that a quiet connection has none.

use std::cell::RefCell;

use stillmesh_tls::record::MAX_RECORD;

/// Full records that a buffer has room for.
const RECORDS: usize = 8;

/// Bytes of a buffer.
pub(super) const SIZE: usize = RECORDS * MAX_RECORD;

/// Buffers that a thread keeps.
const SPARE: usize = 4;

thread_local! {
    static SPARES: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of [`SIZE`] bytes, with anything in it.
pub(super) fn take() -> Box<[u8]> {
    let spare = SPARES.try_with(|spares| spares.borrow_mut().pop()).ok().flatten();
    spare.unwrap_or_else(|| vec![0; SIZE].into_boxed_slice())
}

/// Takes a buffer back. Others than those of [`take`] are freed.
pub(super) fn give(buffer: Box<[u8]>) {
    if buffer.len() == SIZE {
        // A thread that ends keeps nothing.
        let _ = SPARES.try_with(|spares| {
            let mut spares = spares.borrow_mut();
            if spares.len() < SPARE {
                spares.push(buffer);
            }
        });
    }
}
