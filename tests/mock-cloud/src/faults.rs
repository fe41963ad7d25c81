//! What goes wrong on demand: scripted faults, which come first, and seeded ones.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One thing that goes wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Fault {
    /// The API's action, such as `RunInstances`; `*` is any.
    pub action: String,
    /// How it goes wrong.
    pub kind: Kind,
    /// How often; then it is over.
    #[serde(default = "once")]
    pub times: u32,
}

/// How a call goes wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case", deny_unknown_fields)]
pub enum Kind {
    /// It is refused and does nothing.
    Refuse {
        /// The error's code.
        code: String,
        /// The HTTP status.
        status: u16,
    },
    /// It does what it was asked for, and answers with an error of the service.
    FailAfter,
    /// It does what it was asked for, and the connection ends without an answer.
    CloseAfter,
    /// It does what it was asked for, and answers so much later.
    Delay {
        /// How much later.
        ms: u64,
    },
}

fn once() -> u32 {
    1
}

/// Faults to come.
#[derive(Debug)]
pub struct Faults {
    script: VecDeque<Fault>,
    random: fastrand::Rng,
    /// How many of a thousand calls go wrong by chance.
    per_mille: u32,
    injected: u64,
}

impl Faults {
    /// By chance, this many of a thousand; the same seed gives the same chances.
    pub fn new(seed: u64, per_mille: u32) -> Self {
        Self { script: VecDeque::new(), random: fastrand::Rng::with_seed(seed), per_mille, injected: 0 }
    }

    /// One more fault to come.
    pub fn add(&mut self, fault: Fault) {
        self.script.push_back(fault);
    }

    /// No more of them, scripted or by chance.
    pub fn clear(&mut self) {
        self.script.clear();
        self.per_mille = 0;
    }

    /// How many calls have gone wrong.
    pub fn injected(&self) -> u64 {
        self.injected
    }

    /// What goes wrong with this call.
    pub fn next(&mut self, action: &str) -> Option<Kind> {
        let scripted = self.script.iter().position(|fault| fault.action == "*" || fault.action == action);
        let kind = match scripted {
            Some(place) => {
                let fault = &mut self.script[place];
                fault.times = fault.times.saturating_sub(1);
                let kind = fault.kind.clone();
                if fault.times == 0 {
                    self.script.remove(place);
                }
                Some(kind)
            }
            None if self.random.u32(0..1000) < self.per_mille => Some(self.by_chance()),
            None => None,
        };
        self.injected += u64::from(kind.is_some());
        kind
    }

    fn by_chance(&mut self) -> Kind {
        match self.random.u32(0..6) {
            0 => Kind::Refuse { code: "RequestLimitExceeded".to_owned(), status: 503 },
            1 => Kind::Refuse { code: "InternalError".to_owned(), status: 500 },
            2 => Kind::Refuse { code: "Unavailable".to_owned(), status: 503 },
            3 => Kind::FailAfter,
            4 => Kind::CloseAfter,
            _ => Kind::Delay { ms: self.random.u64(20..500) },
        }
    }
}

/// A time between two, by chance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// At least.
    pub from: Duration,
    /// At most.
    pub to: Duration,
}

impl Span {
    /// No time at all.
    pub const NONE: Self = Self { from: Duration::ZERO, to: Duration::ZERO };

    /// Between these milliseconds.
    pub const fn ms(from: u64, to: u64) -> Self {
        Self { from: Duration::from_millis(from), to: Duration::from_millis(to) }
    }

    /// One of them.
    pub fn draw(self, random: &mut fastrand::Rng) -> Duration {
        self.from + (self.to.saturating_sub(self.from)).mul_f64(random.f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_comes_first_and_ends() {
        let mut faults = Faults::new(1, 0);
        faults.add(Fault { action: "RunInstances".to_owned(), kind: Kind::FailAfter, times: 2 });
        assert_eq!(faults.next("DescribeInstances"), None);
        assert_eq!((faults.next("RunInstances"), faults.next("RunInstances")), (Some(Kind::FailAfter), Some(Kind::FailAfter)));
        assert_eq!((faults.next("RunInstances"), faults.injected()), (None, 2));
    }

    #[test]
    fn the_same_seed_gives_the_same_faults() {
        let all = |seed| {
            let mut faults = Faults::new(seed, 100);
            (0..1000).map(|_| faults.next("DescribeInstances")).collect::<Vec<_>>()
        };
        assert_eq!(all(7), all(7));
        assert_ne!(all(7), all(8));
        let share = all(7).iter().flatten().count();
        assert!((60..140).contains(&share), "{share} of a thousand at a hundred per mille");
    }
}
