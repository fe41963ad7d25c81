//! What to do with a call, decided from the call and what is known of its sandbox; no clock, no IO.
//!
//! Kata's shims repeat themselves: StopVM comes three times within 85 ms, also after a CreateVM that was refused, and the Go shim's
//! clean-up calls CreateVM again for a sandbox that it stops next. Every pair is decided here.

/// A call of the hypervisor service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// CreateVM.
    Create,
    /// StartVM.
    Start,
    /// StopVM.
    Stop,
}

/// What is known of the sandbox that a call names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Nothing.
    Unknown,
    /// CreateVM is being worked on; nothing is recorded yet.
    Creating,
    /// Recorded, on its way to Ready.
    Starting,
    /// Ready.
    Ready,
    /// Bring-up has failed.
    Failed,
    /// Being taken down.
    Stopping,
    /// Stopped not long ago, nothing is left.
    Stopped,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Record a new sandbox.
    Begin,
    /// Wait for the CreateVM that is being worked on, then decide again.
    JoinCreation,
    /// Give the CreateVM that is being worked on up before it records anything; then answer OK.
    CancelCreation,
    /// Answer OK (CreateVM: with the path of the agent socket).
    Done,
    /// Wait until the sandbox is Ready or has failed.
    AwaitReady,
    /// Answer with why bring-up has failed.
    TellFailure,
    /// Record that the sandbox is being stopped, then answer OK.
    Stop,
    /// Answer that the sandbox is not known.
    RefuseUnknown,
    /// Answer that the sandbox was stopped.
    RefuseStopped,
}

/// Decides.
pub fn admit(call: Call, known: Known) -> Decision {
    match (call, known) {
        (Call::Create, Known::Unknown) => Decision::Begin,
        (Call::Create | Call::Start, Known::Creating) => Decision::JoinCreation,
        (Call::Create, Known::Starting | Known::Ready | Known::Failed) => Decision::Done,
        (Call::Create | Call::Start, Known::Stopping | Known::Stopped) => Decision::RefuseStopped,
        (Call::Start, Known::Unknown) => Decision::RefuseUnknown,
        (Call::Start, Known::Starting) => Decision::AwaitReady,
        (Call::Start, Known::Ready) => Decision::Done,
        (Call::Start, Known::Failed) => Decision::TellFailure,
        (Call::Stop, Known::Unknown | Known::Stopping | Known::Stopped) => Decision::Done,
        (Call::Stop, Known::Creating) => Decision::CancelCreation,
        (Call::Stop, Known::Starting | Known::Ready | Known::Failed) => Decision::Stop,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CALLS: [Call; 3] = [Call::Create, Call::Start, Call::Stop];
    const ALL: [Known; 7] =
        [Known::Unknown, Known::Creating, Known::Starting, Known::Ready, Known::Failed, Known::Stopping, Known::Stopped];

    #[test]
    fn stop_is_never_refused_and_acts_only_on_what_is_alive() {
        for known in ALL {
            let expected = match known {
                Known::Creating => Decision::CancelCreation,
                Known::Starting | Known::Ready | Known::Failed => Decision::Stop,
                Known::Unknown | Known::Stopping | Known::Stopped => Decision::Done,
            };
            assert_eq!(admit(Call::Stop, known), expected, "{known:?}");
        }
    }

    #[test]
    fn only_create_of_an_unknown_sandbox_begins_one() {
        for call in CALLS {
            for known in ALL {
                let begins = admit(call, known) == Decision::Begin;
                assert_eq!(begins, call == Call::Create && known == Known::Unknown, "{call:?} {known:?}");
            }
        }
    }

    #[test]
    fn calls_after_stop_are_refused() {
        for call in [Call::Create, Call::Start] {
            for known in [Known::Stopping, Known::Stopped] {
                assert_eq!(admit(call, known), Decision::RefuseStopped);
            }
        }
    }

    /// Anything that can happen to one sandbox.
    #[derive(Debug, Clone, Copy)]
    enum Event {
        Call(Call),
        /// CreateVM's work ends: the record is written.
        Recorded,
        /// Bring-up ends well.
        BroughtUp,
        /// Bring-up fails.
        Failed,
        /// Take-down is done.
        TakenDown,
        /// The daemon is killed and started: only what is recorded is known.
        Restarted,
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            proptest::sample::select(CALLS.to_vec()).prop_map(Event::Call),
            Just(Event::Recorded),
            Just(Event::BroughtUp),
            Just(Event::Failed),
            Just(Event::TakenDown),
            Just(Event::Restarted),
        ]
    }

    proptest! {
        /// Whatever the order, once StopVM was answered nothing of the sandbox comes up, and it begins at most once per daemon's life.
        #[test]
        fn after_stop_nothing_comes_up(events in proptest::collection::vec(any_event(), 0..40)) {
            let mut known = Known::Unknown;
            let mut was_stopped = false;
            for event in events {
                let before = known;
                known = match (event, known) {
                    (Event::Call(call), _) => match admit(call, known) {
                        Decision::Begin => {
                            prop_assert!(!was_stopped, "began after StopVM");
                            Known::Creating
                        }
                        Decision::CancelCreation => Known::Stopped,
                        Decision::Stop => Known::Stopping,
                        Decision::AwaitReady => { prop_assert_eq!(known, Known::Starting); known }
                        Decision::TellFailure => { prop_assert_eq!(known, Known::Failed); known }
                        Decision::JoinCreation => { prop_assert_eq!(known, Known::Creating); known }
                        Decision::RefuseStopped | Decision::RefuseUnknown => { prop_assert_ne!(call, Call::Stop); known }
                        Decision::Done => known,
                    },
                    (Event::Recorded, Known::Creating) => Known::Starting,
                    (Event::BroughtUp, Known::Starting) => Known::Ready,
                    (Event::Failed, Known::Starting) => Known::Failed,
                    (Event::TakenDown, Known::Stopping) => Known::Stopped,
                    (Event::Restarted, Known::Creating | Known::Stopped) => { was_stopped = false; Known::Unknown }
                    (Event::Restarted, Known::Ready) => Known::Ready,
                    (_, known) => known,
                };
                if matches!(event, Event::Call(Call::Stop)) && before != Known::Unknown {
                    was_stopped = true;
                }
                if was_stopped {
                    prop_assert!(matches!(known, Known::Stopping | Known::Stopped), "{:?} after StopVM", known);
                }
            }
        }
    }
}
