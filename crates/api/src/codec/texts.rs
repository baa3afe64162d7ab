//! Texts that many resources have in common (namespaces, nodes, accounts, labels), each kept once: ten thousand workloads
//! would hold ten thousand copies.

use std::hash::BuildHasher as _;
use std::sync::LazyLock;

use foldhash::fast::FixedState;
use parking_lot::Mutex;
use stillmesh_core::model::{PolicyKey, ServiceKey, Str};

/// How many texts are remembered; a new one takes the place of another with its hash.
const PLACES: usize = 4096;

/// Longer ones, bytes, are not: they would be kept when nobody needs them any more. Kubernetes' names are shorter.
const LONGEST: usize = 253;

static LATELY: LazyLock<Mutex<Vec<Option<Str>>>> = LazyLock::new(|| Mutex::new(vec![None; PLACES]));

/// A text, shared with what was read lately where that is the same.
pub(super) fn shared(text: &str) -> Str {
    if text.len() > LONGEST {
        return text.into();
    }
    let hash = FixedState::default().hash_one(text);
    let mut lately = LATELY.lock();
    let place = usize::try_from(hash % PLACES as u64).ok().and_then(|place| lately.get_mut(place));
    match place {
        Some(Some(known)) if **known == *text => known.clone(),
        Some(place) => place.insert(text.into()).clone(),
        None => text.into(),
    }
}

/// A key of shared texts.
pub(super) fn service_key(key: &ServiceKey) -> ServiceKey {
    ServiceKey::new(shared(&key.namespace), shared(&key.hostname))
}

/// A key of shared texts.
pub(super) fn policy_key(key: &PolicyKey) -> PolicyKey {
    PolicyKey::new(shared(&key.namespace), shared(&key.name))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_comes_again_is_kept_once_and_nothing_is_another_text() {
        let (first, again) = (shared("a namespace of this test"), shared("a namespace of this test"));
        assert!(Arc::ptr_eq(&first, &again));
        for number in 0..3 * PLACES {
            let text = format!("{number}");
            assert_eq!(*shared(&text), *text);
        }
        let long = "x".repeat(LONGEST + 1);
        assert!(!Arc::ptr_eq(&shared(&long), &shared(&long)));
    }
}
