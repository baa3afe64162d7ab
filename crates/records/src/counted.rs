//! Things with how often each is used: who releases one last takes it out.

use std::num::NonZeroU32;

/// Where something is in its table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Handle(u32);

impl Handle {
    /// Nothing.
    pub const NONE: Self = Self(0);

    fn index(self) -> Option<usize> {
        usize::try_from(self.0.checked_sub(1)?).ok()
    }
}

#[derive(Debug)]
struct Slot<T> {
    value: T,
    uses: NonZeroU32,
}

/// A table of things that are used.
#[derive(Debug)]
pub(crate) struct Counted<T> {
    slots: Vec<Option<Slot<T>>>,
    free: Vec<Handle>,
}

impl<T> Default for Counted<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Counted<T> {
    /// Adds one, used once.
    pub(crate) fn add(&mut self, value: T) -> Handle {
        let slot = Some(Slot { value, uses: NonZeroU32::MIN });
        if let Some(handle) = self.free.pop() {
            if let Some(place) = handle.index().and_then(|index| self.slots.get_mut(index)) {
                *place = slot;
            }
            return handle;
        }
        // There is no memory for so many.
        let Ok(number) = u32::try_from(self.slots.len() + 1) else { return Handle::NONE };
        if self.slots.len() == self.slots.capacity() {
            self.slots.reserve_exact(8 + self.slots.len() / 8);
        }
        self.slots.push(slot);
        Handle(number)
    }

    /// Uses what is there once more, if that is what was meant: another one may have its place by now.
    pub(crate) fn again(&mut self, handle: Handle, is_meant: impl FnOnce(&T) -> bool) -> Option<Handle> {
        let slot = self.slots.get_mut(handle.index()?)?.as_mut().filter(|slot| is_meant(&slot.value))?;
        slot.uses = slot.uses.saturating_add(1);
        Some(handle)
    }

    /// Uses it once less. With its last use it is taken out.
    pub(crate) fn release(&mut self, handle: Handle) -> Option<T> {
        let place = self.slots.get_mut(handle.index()?)?;
        let slot = place.as_mut()?;
        if let Some(left) = NonZeroU32::new(slot.uses.get() - 1) {
            slot.uses = left;
            return None;
        }
        self.free.push(handle);
        place.take().map(|slot| slot.value)
    }

    /// One that is used.
    pub(crate) fn get(&self, handle: Handle) -> Option<&T> {
        Some(&self.slots.get(handle.index()?)?.as_ref()?.value)
    }

    /// How many are used.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// How often all together are used.
    #[cfg(test)]
    pub(crate) fn uses(&self) -> usize {
        self.slots.iter().flatten().map(|slot| slot.uses.get() as usize).sum()
    }

    /// What the table takes with its room, bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Option<Slot<T>>>() + self.free.capacity() * size_of::<Handle>()
    }
}
