//! Sorted sets that share structure: [`Sorted`] for many items (the endpoints of a service), [`Few`] where there is
//! nearly always one (the workload at an address).

use std::sync::Arc;

use crate::model::{Policy, PolicyKey, Service, ServiceKey, Workload, WorkloadUid};

/// Something that is kept in order of its own key.
pub(super) trait Keyed {
    type Key: Ord;
    fn key(&self) -> &Self::Key;
}

impl Keyed for Arc<Workload> {
    type Key = WorkloadUid;
    fn key(&self) -> &WorkloadUid {
        &self.uid
    }
}

impl Keyed for Arc<Service> {
    type Key = ServiceKey;
    fn key(&self) -> &ServiceKey {
        &self.key
    }
}

impl Keyed for Arc<Policy> {
    type Key = PolicyKey;
    fn key(&self) -> &PolicyKey {
        &self.key
    }
}

impl Keyed for WorkloadUid {
    type Key = Self;
    fn key(&self) -> &Self {
        self
    }
}

/// Chunks are split when longer: what one change copies and moves at most, besides one pointer per chunk.
const CHUNK: usize = 128;

/// A set in chunks, so that a change to a service with 10,000 endpoints does not copy them all.
#[derive(Clone, Debug)]
pub(super) struct Sorted<T> {
    /// None of them is empty.
    chunks: Vec<Arc<Vec<T>>>,
}

impl<T> Default for Sorted<T> {
    fn default() -> Self {
        Self { chunks: Vec::new() }
    }
}

impl<T: PartialEq> PartialEq for Sorted<T> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl<T> Sorted<T> {
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }
}

impl<T: Keyed + Clone> Sorted<T> {
    /// Adds `item`, in place of one with the same key.
    pub(super) fn insert(&mut self, item: T) {
        let at = self.chunk_of(item.key());
        let Some(chunk) = self.chunks.get_mut(at) else {
            self.chunks.push(Arc::new(vec![item]));
            return;
        };
        let chunk = Arc::make_mut(chunk);
        match chunk.binary_search_by(|held| held.key().cmp(item.key())) {
            Ok(index) => chunk[index] = item,
            Err(index) => chunk.insert(index, item),
        }
        if chunk.len() > CHUNK {
            let upper = chunk.split_off(CHUNK / 2);
            self.chunks.insert(at + 1, Arc::new(upper));
        }
    }

    pub(super) fn remove(&mut self, key: &T::Key) {
        let at = self.chunk_of(key);
        let Some(chunk) = self.chunks.get_mut(at) else { return };
        if let Ok(index) = chunk.binary_search_by(|held| held.key().cmp(key)) {
            let chunk = Arc::make_mut(chunk);
            chunk.remove(index);
            if chunk.is_empty() {
                self.chunks.remove(at);
            }
        }
    }

    /// The chunk that holds `key` or would: the last one that does not start after it.
    fn chunk_of(&self, key: &T::Key) -> usize {
        let starts_before = |chunk: &Arc<Vec<T>>| chunk.first().is_some_and(|first| first.key() <= key);
        self.chunks.partition_point(starts_before).saturating_sub(1)
    }
}

/// A set that nearly always has one item, and then costs no allocation.
#[derive(Clone, Debug, Default)]
pub(super) enum Few<T> {
    #[default]
    None,
    One(T),
    Many(Sorted<T>),
}

impl<T: PartialEq> PartialEq for Few<T> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl<T> Few<T> {
    /// In order of the keys.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        let (one, many) = match self {
            Self::None => (None, None),
            Self::One(item) => (Some(item), None),
            Self::Many(items) => (None, Some(items)),
        };
        one.into_iter().chain(many.into_iter().flat_map(Sorted::iter))
    }

    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::None => true,
            Self::One(_) => false,
            Self::Many(items) => items.is_empty(),
        }
    }
}

impl<T: Keyed + Clone> Few<T> {
    pub(super) fn insert(&mut self, item: T) {
        match self {
            Self::Many(items) => items.insert(item),
            Self::One(held) if held.key() != item.key() => {
                let mut items = Sorted::default();
                items.insert(held.clone());
                items.insert(item);
                *self = Self::Many(items);
            }
            Self::None | Self::One(_) => *self = Self::One(item),
        }
    }

    pub(super) fn remove(&mut self, key: &T::Key) {
        match self {
            Self::One(held) if held.key() == key => *self = Self::None,
            Self::None | Self::One(_) => (),
            Self::Many(items) => items.remove(key),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    use super::*;

    fn uid(number: u16) -> WorkloadUid {
        WorkloadUid(format!("{number:05}").into())
    }

    proptest! {
        #[test]
        fn sets_hold_what_a_plain_set_holds_in_order(steps in prop::collection::vec((any::<bool>(), 0..400u16), 0..1500)) {
            let (mut plain, mut sorted, mut few) = (BTreeSet::new(), Sorted::default(), Few::default());
            for (add, number) in steps {
                if add {
                    plain.insert(uid(number));
                    sorted.insert(uid(number));
                    few.insert(uid(number));
                } else {
                    plain.remove(&uid(number));
                    sorted.remove(&uid(number));
                    few.remove(&uid(number));
                }
            }
            prop_assert!(plain.iter().eq(sorted.iter()));
            prop_assert!(plain.iter().eq(few.iter()));
            prop_assert_eq!(plain.is_empty(), sorted.is_empty());
            prop_assert_eq!(plain.is_empty(), few.is_empty());
        }
    }

    #[test]
    fn a_change_copies_one_chunk() {
        let mut old = Sorted::default();
        (0..10_000).for_each(|number| old.insert(uid(number)));
        let mut new = old.clone();
        new.insert(uid(20_000));
        let copied =
            new.chunks.iter().filter(|chunk| !old.chunks.iter().any(|other| Arc::ptr_eq(chunk, other))).count();
        assert!(copied <= 2, "{copied} of {} chunks", new.chunks.len());
        assert!(old.chunks.iter().all(|chunk| chunk.len() <= CHUNK));
        assert_eq!((old.iter().count(), new.iter().count()), (10_000, 10_001));
    }
}
