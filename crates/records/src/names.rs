//! Texts of records: each is held once, for as long as a record has it.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::quality::RandomState;

/// What a text costs beside its bytes: its place in the table and in the index, and the allocator's own.
const OVERHEAD: usize = 112;

/// A text in a table of [`Names`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handle(u32);

impl Handle {
    /// No text.
    pub const NONE: Self = Self(0);

    fn index(self) -> Option<usize> {
        usize::try_from(self.0.checked_sub(1)?).ok()
    }
}

#[derive(Debug)]
struct Slot {
    text: Arc<str>,
    uses: u32,
}

/// Where a text was found last, for who holds it again and again. It belongs to that text alone.
#[derive(Debug, Default)]
pub(crate) struct Found {
    handle: Handle,
    text: Option<Arc<str>>,
}

/// Texts with how often each is used.
#[derive(Debug, Default)]
pub struct Names {
    slots: Vec<Option<Slot>>,
    free: Vec<u32>,
    index: HashMap<Arc<str>, u32, RandomState>,
    bytes: usize,
}

impl Names {
    /// Holds a text once more. An empty one is [`Handle::NONE`].
    pub fn hold(&mut self, text: &str) -> Handle {
        if text.is_empty() {
            return Handle::NONE;
        }
        if let Some(number) = self.index.get(text) {
            let handle = Handle(*number);
            if let Some(slot) = self.slot(handle) {
                slot.uses = slot.uses.saturating_add(1);
            }
            return handle;
        }
        let kept: Arc<str> = text.into();
        let slot = Some(Slot { text: kept.clone(), uses: 1 });
        let number = match self.free.pop() {
            Some(number) => {
                if let Some(place) = Handle(number).index().and_then(|index| self.slots.get_mut(index)) {
                    *place = slot;
                }
                number
            }
            None => match u32::try_from(self.slots.len() + 1) {
                Ok(number) => {
                    self.slots.push(slot);
                    number
                }
                // There is no memory for so many.
                Err(_) => return Handle::NONE,
            },
        };
        self.bytes += cost(&kept);
        self.index.insert(kept, number);
        Handle(number)
    }

    /// Likewise, where it is known where the text was found last.
    pub(crate) fn hold_again(&mut self, text: &str, found: &mut Found) -> Handle {
        let handle = found.handle;
        // Another text may have its place by now.
        let is_same = |slot: &&mut Slot| found.text.as_ref().is_some_and(|known| Arc::ptr_eq(known, &slot.text));
        if let Some(slot) = self.slot(handle).filter(is_same) {
            slot.uses = slot.uses.saturating_add(1);
            return handle;
        }
        let handle = self.hold(text);
        *found = Found { handle, text: self.slot(handle).map(|slot| slot.text.clone()) };
        handle
    }

    /// Lets go of a text once. With its last use it is gone.
    pub fn release(&mut self, handle: Handle) {
        let Some(slot) = self.slot(handle) else { return };
        slot.uses = slot.uses.saturating_sub(1);
        if slot.uses > 0 {
            return;
        }
        let gone = handle.index().and_then(|index| self.slots.get_mut(index)).and_then(Option::take);
        if let Some(slot) = gone {
            self.bytes = self.bytes.saturating_sub(cost(&slot.text));
            self.index.remove(&slot.text);
            self.free.push(handle.0);
        }
    }

    /// The text; empty where there is none.
    pub fn text(&self, handle: Handle) -> &str {
        let slot = handle.index().and_then(|index| self.slots.get(index)).and_then(Option::as_ref);
        slot.map_or("", |slot| &slot.text)
    }

    /// How many texts are held.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// What they cost, bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn slot(&mut self, handle: Handle) -> Option<&mut Slot> {
        self.slots.get_mut(handle.index()?)?.as_mut()
    }
}

fn cost(text: &str) -> usize {
    text.len() + OVERHEAD
}
