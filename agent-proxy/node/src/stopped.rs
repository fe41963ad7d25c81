//! Ids of sandboxes that were stopped, so that a late call does not bring one back.

use std::collections::{BTreeSet, VecDeque};

use crate::id::SandboxId;

/// The newest ids: a shim's calls for one sandbox are seconds apart, and what slips through is found dead.
#[derive(Default)]
pub(crate) struct Stopped {
    ids: BTreeSet<SandboxId>,
    order: VecDeque<SandboxId>,
}

impl Stopped {
    const KEPT: usize = 1024;

    pub(crate) fn insert(&mut self, id: SandboxId) {
        if self.ids.insert(id.clone()) {
            self.order.push_back(id);
        }
        if self.order.len() > Self::KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }

    pub(crate) fn contains(&self, id: &SandboxId) -> bool {
        self.ids.contains(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_ids_are_forgotten_and_repeated_ones_take_no_room() {
        let id = |n: usize| SandboxId::new(format!("s{n}")).expect("valid");
        let mut stopped = Stopped::default();
        for n in 0..=Stopped::KEPT {
            stopped.insert(id(n));
            stopped.insert(id(n));
        }
        assert!(!stopped.contains(&id(0)));
        assert!(stopped.contains(&id(1)) && stopped.contains(&id(Stopped::KEPT)));
    }
}
