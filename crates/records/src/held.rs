//! What records share: each thing is held once, for as long as a record has it.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use foldhash::quality::RandomState;

use crate::counted::{Counted, Handle};

/// What a thing costs beside its bytes: its place in the table and in the index, and the allocator's own.
const OVERHEAD: usize = 112;

/// Texts of records.
pub type Names = Held<str>;

/// Where something was found last, for who holds it again and again. It belongs to that alone.
#[derive(Debug)]
pub(crate) struct Found<T: ?Sized> {
    handle: Handle,
    value: Option<Arc<T>>,
}

impl<T: ?Sized> Default for Found<T> {
    fn default() -> Self {
        Self { handle: Handle::NONE, value: None }
    }
}

impl<T: ?Sized> Found<T> {
    /// Whether that is what is there now: another one may have its place.
    fn is(&self, there: &Arc<T>) -> bool {
        self.value.as_ref().is_some_and(|value| Arc::ptr_eq(value, there))
    }
}

/// Things, each held once, with how often each is used.
#[derive(Debug)]
pub struct Held<T: ?Sized> {
    things: Counted<Arc<T>>,
    index: HashMap<Arc<T>, Handle, RandomState>,
    bytes: usize,
}

impl<T: ?Sized> Default for Held<T> {
    fn default() -> Self {
        Self { things: Counted::default(), index: HashMap::default(), bytes: 0 }
    }
}

impl<T: ?Sized + Hash + Eq> Held<T> {
    /// Holds a thing once more. An empty one is [`Handle::NONE`].
    pub fn hold(&mut self, thing: impl Borrow<T> + Into<Arc<T>>) -> Handle {
        if size_of_val(thing.borrow()) == 0 {
            return Handle::NONE;
        }
        if let Some(handle) = self.again(thing.borrow()) {
            return handle;
        }
        let kept = thing.into();
        let handle = self.things.add(kept.clone());
        self.bytes += cost(&*kept);
        self.index.insert(kept, handle);
        handle
    }

    /// Holds what is held already once more.
    pub(crate) fn again(&mut self, thing: &T) -> Option<Handle> {
        let handle = *self.index.get(thing)?;
        self.things.again(handle, |_| true)
    }

    /// Likewise, where it was found last.
    pub(crate) fn again_at(&mut self, found: &Found<T>) -> Option<Handle> {
        self.things.again(found.handle, |there| found.is(there))
    }

    /// Where it was found last, if it is there still.
    pub(crate) fn at(&self, found: &Found<T>) -> Option<Handle> {
        self.things.get(found.handle).is_some_and(|there| found.is(there)).then_some(found.handle)
    }

    /// To find again what is held.
    pub(crate) fn found(&self, handle: Handle) -> Found<T> {
        Found { handle, value: self.things.get(handle).cloned() }
    }

    /// Lets go of a thing once. With its last use it is gone; then it is told.
    pub fn release(&mut self, handle: Handle) -> Option<Arc<T>> {
        let gone = self.things.release(handle)?;
        self.bytes = self.bytes.saturating_sub(cost(&*gone));
        self.index.remove(&*gone);
        Some(gone)
    }

    /// A thing that is held.
    pub fn get(&self, handle: Handle) -> Option<&T> {
        self.things.get(handle).map(|thing| &**thing)
    }

    /// How many things are held.
    pub fn len(&self) -> usize {
        self.things.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How often all together are held.
    #[cfg(test)]
    pub(crate) fn uses(&self) -> usize {
        self.things.uses()
    }

    /// What they cost, bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Names {
    /// Holds a text once more, where it is known where it was found last.
    pub(crate) fn hold_again(&mut self, text: &str, found: &mut Found<str>) -> Handle {
        self.again_at(found).unwrap_or_else(|| {
            let handle = self.hold(text);
            *found = self.found(handle);
            handle
        })
    }

    /// The text; empty where there is none.
    pub fn text(&self, handle: Handle) -> &str {
        self.get(handle).unwrap_or_default()
    }
}

fn cost<T: ?Sized>(thing: &T) -> usize {
    size_of_val(thing) + OVERHEAD
}
