//! What was seen, step by step.

use std::fmt;

/// An account of one telling.
#[derive(Debug, Clone, Default)]
pub(super) struct Transcript {
    steps: Vec<(String, String)>,
    failure: Option<String>,
}

impl Transcript {
    /// An account of a story that never began.
    pub(super) fn failed(why: &str) -> Self {
        Self { steps: Vec::new(), failure: Some(why.to_owned()) }
    }

    /// Writes a step down; a repeated name is numbered.
    pub(super) fn record(&mut self, step: &str, value: String) {
        let before = self.steps.iter().filter(|(s, _)| s == step || s.strip_prefix(step).is_some_and(is_number)).count();
        let name = if before == 0 { step.to_owned() } else { format!("{step} #{}", before + 1) };
        self.steps.push((name, value));
    }

    /// The story broke off.
    pub(super) fn fail(&mut self, why: &str) {
        self.failure.get_or_insert_with(|| why.to_owned());
    }

    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Steps whose values differ, with this one's and the other's value.
    pub(super) fn differences(&self, other: &Self) -> Vec<(String, Option<String>, Option<String>)> {
        let find = |steps: &[(String, String)], step: &str| steps.iter().find(|(s, _)| s == step).map(|(_, v)| v.clone());
        let mut found = Vec::new();
        for (step, value) in &self.steps {
            let theirs = find(&other.steps, step);
            if theirs.as_ref() != Some(value) {
                found.push((step.clone(), Some(value.clone()), theirs));
            }
        }
        for (step, value) in &other.steps {
            if find(&self.steps, step).is_none() {
                found.push((step.clone(), None, Some(value.clone())));
            }
        }
        if self.failure.is_none() && other.failure.is_some() {
            found.push(("the story breaks off".to_owned(), None, other.failure.clone()));
        }
        found
    }
}

fn is_number(rest: &str) -> bool {
    rest.strip_prefix(" #").is_some_and(|n| n.parse::<u32>().is_ok())
}

impl fmt::Display for Transcript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 2000;
        for (step, value) in &self.steps {
            let cut: String = value.chars().take(SHOWN).collect();
            writeln!(f, "{step}: {cut}{}", if value.chars().count() > SHOWN { " ..." } else { "" })?;
        }
        if let Some(failure) = &self.failure {
            writeln!(f, "the story breaks off: {failure}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transcript(steps: &[(&str, &str)]) -> Transcript {
        let mut transcript = Transcript::default();
        for (step, value) in steps {
            transcript.record(step, (*value).to_owned());
        }
        transcript
    }

    #[test]
    fn what_differs_is_named_with_both_values() {
        let runc = transcript(&[("a", "1"), ("b", "2"), ("b", "3")]);
        let ours = transcript(&[("a", "1"), ("b", "2"), ("b", "4"), ("c", "5")]);
        let expected = [("b #2".to_owned(), Some("3".to_owned()), Some("4".to_owned())), ("c".to_owned(), None, Some("5".to_owned()))];
        assert_eq!(runc.differences(&ours), expected);
    }
}
