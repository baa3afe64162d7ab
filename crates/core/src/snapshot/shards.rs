//! A map split into shared shards: changing one entry copies one shard, not the map.
//!
//! Hashing uses fixed keys, so that the same content is laid out the same way in every process; iteration order is
//! still no promise.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use foldhash::quality::FixedState;

/// 10,000 entries make shards of about 40: what one change copies.
const SHARDS: usize = 256;

type Shard<K, V> = HashMap<K, V, FixedState>;

/// The map. Cloning it costs one reference count.
#[derive(Debug)]
pub(super) struct Shards<K, V> {
    shards: Arc<[Arc<Shard<K, V>>; SHARDS]>,
    len: usize,
}

impl<K, V> Clone for Shards<K, V> {
    fn clone(&self) -> Self {
        Self { shards: self.shards.clone(), len: self.len }
    }
}

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        let empty = Arc::new(Shard::default());
        Self { shards: Arc::new(std::array::from_fn(|_| empty.clone())), len: 0 }
    }
}

impl<K: Hash + Eq, V: PartialEq> PartialEq for Shards<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.shards == other.shards
    }
}

impl<K: Hash + Eq, V> Shards<K, V> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.shards[shard_of(key)].get(key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.shards.iter().flat_map(|shard| shard.iter())
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Shards<K, V> {
    /// Puts `value` under `key`; returns what was there.
    pub(super) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let old = self.shard_mut(shard_of(&key)).insert(key, value);
        self.len += usize::from(old.is_none());
        old
    }

    /// Removes and returns what is under `key`. A key that is not there copies nothing.
    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let shard = shard_of(key);
        if !self.shards[shard].contains_key(key) {
            return None;
        }
        let old = self.shard_mut(shard).remove(key);
        self.len -= usize::from(old.is_some());
        old
    }

    /// Changes what is under `key`, starting from the default; what is then `empty` is removed.
    pub(super) fn update(&mut self, key: &K, change: impl FnOnce(&mut V), empty: impl FnOnce(&V) -> bool)
    where
        V: Default,
    {
        let shard = self.shard_mut(shard_of(key));
        let before = shard.len();
        let value = match shard.get_mut(key) {
            Some(value) => value,
            None => shard.entry(key.clone()).or_default(),
        };
        change(value);
        if empty(value) {
            shard.remove(key);
        }
        self.len = self.len + self.shards[shard_of(key)].len() - before;
    }

    fn shard_mut(&mut self, index: usize) -> &mut Shard<K, V> {
        Arc::make_mut(&mut Arc::make_mut(&mut self.shards)[index])
    }

    /// How many shards are not shared with `other`.
    #[cfg(test)]
    pub(super) fn copied_since(&self, other: &Self) -> usize {
        self.shards.iter().zip(other.shards.iter()).filter(|(ours, theirs)| !Arc::ptr_eq(ours, theirs)).count()
    }
}

/// Below [`SHARDS`] by its type. The middle bits: the map inside a shard goes by the lowest and the highest ones.
fn shard_of<Q: Hash + ?Sized>(key: &Q) -> usize {
    usize::from(FixedState::default().hash_one(key).to_le_bytes()[4])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_copies_one_shard_and_leaves_the_old_map_alone() {
        let mut old = Shards::<u64, u64>::default();
        for key in 0..10_000 {
            assert_eq!(old.insert(key, key), None);
        }
        let mut new = old.clone();
        assert_eq!(new.insert(7, 70), Some(7));
        assert_eq!((old.get(&7), new.get(&7)), (Some(&7), Some(&70)));
        assert_eq!(new.copied_since(&old), 1);
        assert_eq!((old.len(), new.len()), (10_000, 10_000));
    }

    #[test]
    fn removing_what_is_not_there_copies_nothing() {
        let mut old = Shards::<u64, u64>::default();
        old.insert(1, 1);
        let mut new = old.clone();
        assert_eq!(new.remove(&2), None);
        assert_eq!(new.copied_since(&old), 0);
        assert_eq!(new.remove(&1), Some(1));
        assert_eq!((old.len(), new.len()), (1, 0));
    }

    #[test]
    fn update_keeps_count_and_drops_what_became_empty() {
        let mut map = Shards::<u64, Vec<u64>>::default();
        map.update(&1, |list| list.push(5), Vec::is_empty);
        map.update(&1, |list| list.push(6), Vec::is_empty);
        assert_eq!((map.len(), map.get(&1)), (1, Some(&vec![5, 6])));
        map.update(&1, Vec::clear, Vec::is_empty);
        assert_eq!((map.len(), map.get(&1)), (0, None));
        map.update(&2, |_| (), Vec::is_empty);
        assert_eq!(map.len(), 0);
    }

    #[test]
    fn maps_with_the_same_content_are_equal_whatever_their_history() {
        let (mut left, mut right) = (Shards::<u64, u64>::default(), Shards::<u64, u64>::default());
        for key in 0..1000 {
            left.insert(key, key);
            right.insert(999 - key, 999 - key);
        }
        right.insert(5000, 0);
        assert_ne!(left, right);
        right.remove(&5000);
        assert_eq!(left, right);
    }
}
