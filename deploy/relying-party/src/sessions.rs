//! Sessions: the nonce of each client between `/auth` and `/attest`, then its token. In memory, bounded, five minutes long.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, SystemTime};

/// How long a session lasts, as Trustee's does by default.
pub(crate) const LIFETIME: Duration = Duration::from_secs(300);
/// Sessions at once. Anybody can begin one, and the oldest make room: more than anybody begins in the seconds that a quote takes, and with
/// their tokens some 40 MiB.
const MAX_SESSIONS: usize = 1 << 14;

/// All sessions of a broker.
#[derive(Default)]
pub(crate) struct Sessions {
    by_id: HashMap<String, Session>,
    /// As they were begun, and so as they end: all last equally long.
    order: VecDeque<String>,
}

#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) tee: String,
    pub(crate) nonce: String,
    /// Once attested.
    pub(crate) token: Option<String>,
    pub(crate) expires: SystemTime,
}

impl Sessions {
    /// Begins a session.
    pub(crate) fn insert(&mut self, id: String, tee: String, nonce: String, now: SystemTime) -> SystemTime {
        while let Some(first) = self.order.front() {
            let is_over = self.by_id.get(first).is_none_or(|session| session.expires <= now);
            if !is_over && self.order.len() < MAX_SESSIONS {
                break;
            }
            self.by_id.remove(first);
            self.order.pop_front();
        }
        let expires = now + LIFETIME;
        self.order.push_back(id.clone());
        self.by_id.insert(id, Session { tee, nonce, token: None, expires });
        expires
    }

    /// A session that has not expired.
    pub(crate) fn get(&self, id: &str, now: SystemTime) -> Option<Session> {
        self.by_id.get(id).filter(|session| session.expires > now).cloned()
    }

    /// Keeps the token. A session that was dropped meanwhile stays dropped: its client has the token.
    pub(crate) fn attest(&mut self, id: &str, token: &str) {
        if let Some(session) = self.by_id.get_mut(id) {
            session.token = Some(token.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_ends() {
        let (mut sessions, now) = (Sessions::default(), SystemTime::UNIX_EPOCH);
        sessions.insert("a".to_owned(), "sample".to_owned(), "nonce".to_owned(), now);
        assert!(sessions.get("a", now + LIFETIME - Duration::from_secs(1)).is_some());
        assert!(sessions.get("a", now + LIFETIME).is_none());
        assert!(sessions.get("b", now).is_none());
    }

    #[test]
    fn sessions_are_bounded() {
        let mut sessions = Sessions::default();
        let at = |index: usize| SystemTime::UNIX_EPOCH + Duration::from_millis(index as u64);
        for index in 0..=MAX_SESSIONS {
            sessions.insert(index.to_string(), "sample".to_owned(), String::new(), at(index));
        }
        assert_eq!((sessions.by_id.len(), sessions.order.len()), (MAX_SESSIONS, MAX_SESSIONS));
        assert!(sessions.get("0", at(MAX_SESSIONS)).is_none(), "the oldest made room");
        assert!(sessions.get("1", at(MAX_SESSIONS)).is_some());
        sessions.insert("late".to_owned(), String::new(), String::new(), at(0) + LIFETIME * 2);
        assert_eq!((sessions.by_id.len(), sessions.order.len()), (1, 1), "expired ones go first");
    }
}
