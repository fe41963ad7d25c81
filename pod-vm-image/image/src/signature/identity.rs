//! `signedIdentity`: which reference a signature has to name for an image.

use serde::Deserialize;

use super::name::Name;

/// The rules of containers-policy.json(5).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", deny_unknown_fields)]
pub(crate) enum Identity {
    /// The reference that was asked for.
    MatchExact {},
    /// That reference if it has a tag, any reference of the repository if it has just a digest.
    MatchRepoDigestOrExact {},
    /// Any of the repository.
    MatchRepository {},
    /// This one.
    #[serde(rename_all = "camelCase")]
    ExactReference { docker_reference: String },
    /// Any of this repository.
    #[serde(rename_all = "camelCase")]
    ExactRepository { docker_repository: String },
    /// As `matchRepoDigestOrExact`, once the image's name has another beginning.
    #[serde(rename = "remapIdentity", rename_all = "camelCase")]
    Remap { prefix: String, signed_prefix: String },
}

/// The rule of a requirement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rule {
    Stated(Identity),
    /// The default of `sigstoreSigned`: `matchRepoDigestOrExact`, and where the signature names a repository only, any image of that.
    ///
    /// The manual has no such exception, so that no signature of cosign satisfies its default. The Confidential Data Hub compares no name at
    /// all unless a rule is stated, and policies written for it state none; whoever wants the manual's rule states it.
    CosignDefault,
}

impl Identity {
    /// Fails for names that no signature could match.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self {
            Self::MatchExact {} | Self::MatchRepoDigestOrExact {} | Self::MatchRepository {} => Ok(()),
            Self::ExactReference { docker_reference } => match Name::parse(docker_reference) {
                Some(name) if !name.is_repository() => Ok(()),
                _ => Err(format!("dockerReference {docker_reference:?} is not a reference with a tag or a digest")),
            },
            Self::ExactRepository { docker_repository } => match Name::parse(docker_repository) {
                Some(name) if name.is_repository() => Ok(()),
                _ => Err(format!("dockerRepository {docker_repository:?} is not a repository")),
            },
            Self::Remap { prefix, signed_prefix } => {
                let odd = [prefix, signed_prefix].into_iter().find(|prefix| prefix.is_empty() || prefix.contains(['@', '*']));
                odd.map_or(Ok(()), |odd| Err(format!("{odd:?} is not a host or a path below one")))
            }
        }
    }

    fn accepts(&self, signed: &Name, asked: &Name) -> bool {
        match self {
            Self::MatchExact {} => is_exact(signed, asked),
            Self::MatchRepoDigestOrExact {} => match asked.tag {
                None => !signed.is_repository() && signed.repository == asked.repository,
                Some(_) => is_exact(signed, asked),
            },
            Self::MatchRepository {} => signed.repository == asked.repository,
            Self::ExactReference { docker_reference } => Name::parse(docker_reference).is_some_and(|stated| stated == *signed),
            Self::ExactRepository { docker_repository } => {
                Name::parse(docker_repository).is_some_and(|stated| stated.repository == signed.repository)
            }
            Self::Remap { prefix, signed_prefix } => {
                let rest = asked.repository.strip_prefix(prefix.as_str()).filter(|rest| rest.is_empty() || rest.starts_with('/'));
                let repository = rest.map_or_else(|| asked.repository.clone(), |rest| format!("{signed_prefix}{rest}"));
                Self::MatchRepoDigestOrExact {}.accepts(signed, &Name { repository, ..asked.clone() })
            }
        }
    }
}

impl Rule {
    /// Whether a signature that names `signed` speaks of the image that was asked for.
    pub(crate) fn accepts(&self, signed: &Name, asked: &Name) -> bool {
        match self {
            Self::Stated(identity) => identity.accepts(signed, asked),
            Self::CosignDefault if signed.is_repository() => Identity::MatchRepository {}.accepts(signed, asked),
            Self::CosignDefault => Identity::MatchRepoDigestOrExact {}.accepts(signed, asked),
        }
    }
}

/// Everything that the signature says of tag and digest was asked for, and it says something.
fn is_exact(signed: &Name, asked: &Name) -> bool {
    let agrees = |signed: &Option<String>, asked: &Option<String>| signed.is_none() || signed == asked;
    !signed.is_repository()
        && signed.repository == asked.repository
        && agrees(&signed.tag, &asked.tag)
        && agrees(&signed.digest, &asked.digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts(rule: &str, signed: &str, asked: &str) -> bool {
        let rule = if rule.is_empty() { Rule::CosignDefault } else { Rule::Stated(serde_json::from_str(rule).unwrap()) };
        if let Rule::Stated(identity) = &rule {
            identity.check().unwrap();
        }
        rule.accepts(&Name::parse(signed).unwrap(), &Name::of(&asked.parse().unwrap()))
    }

    #[test]
    fn rules_accept_what_the_manual_says() {
        let digest = format!("r.example/app@sha256:{}", "a".repeat(64));
        let other = format!("r.example/app@sha256:{}", "b".repeat(64));
        let both = format!("r.example/app:1@sha256:{}", "a".repeat(64));
        let exact = r#"{"type":"matchExact"}"#;
        let or_digest = r#"{"type":"matchRepoDigestOrExact"}"#;
        let repository = r#"{"type":"matchRepository"}"#;
        let reference = r#"{"type":"exactReference","dockerReference":"r.example/app:2"}"#;
        let this = r#"{"type":"exactRepository","dockerRepository":"r.example/app"}"#;
        let remap = r#"{"type":"remapIdentity","prefix":"mirror.example/x","signedPrefix":"r.example"}"#;
        for (rule, signed, asked, expected) in [
            (exact, "r.example/app:1", "r.example/app:1", true),
            (exact, "r.example/app:2", "r.example/app:1", false),
            (exact, "r.example/app", "r.example/app:1", false),
            (exact, "r.example/app:1", &digest, false),
            (exact, &digest, &digest, true),
            (exact, &other, &digest, false),
            (exact, "r.example/app:1", &both, true),
            (exact, "r.example/app:2", &both, false),
            (or_digest, "r.example/app:1", "r.example/app:1", true),
            (or_digest, "r.example/app:2", "r.example/app:1", false),
            (or_digest, "r.example/app:2", &digest, true),
            (or_digest, "r.example/other:2", &digest, false),
            (or_digest, &other, &digest, true),
            (or_digest, "r.example/app", &digest, false),
            (or_digest, "r.example/app:1", &both, true),
            (or_digest, "r.example/app:2", &both, false),
            (or_digest, "r.example/app", "r.example/app:1", false),
            (repository, "r.example/app:2", "r.example/app:1", true),
            (repository, "r.example/app/x:1", "r.example/app:1", false),
            (reference, "r.example/app:2", "elsewhere.example/y:7", true),
            (reference, "r.example/app:1", "elsewhere.example/y:7", false),
            (this, "r.example/app:9", "elsewhere.example/y:7", true),
            (this, "r.example/apps:9", "elsewhere.example/y:7", false),
            (remap, "r.example/app:1", "mirror.example/x/app:1", true),
            (remap, "r.example/app:2", "mirror.example/x/app:1", false),
            (remap, "r.example/y/app:1", "mirror.example/xy/app:1", false),
            (remap, "other.example/app:1", "other.example/app:1", true),
            ("", "r.example/app", "r.example/app:1", true),
            ("", "r.example/app", &digest, true),
            ("", "r.example/app:1", "r.example/app:1", true),
            ("", "r.example/app:2", "r.example/app:1", false),
            ("", "r.example/other", "r.example/app:1", false),
        ] {
            assert_eq!(accepts(rule, signed, asked), expected, "{rule} {signed} {asked}");
        }
    }

    #[test]
    fn names_that_match_nothing_are_refused() {
        for rule in [
            r#"{"type":"exactReference","dockerReference":"r.example/app"}"#,
            r#"{"type":"exactRepository","dockerRepository":"r.example/app:1"}"#,
            r#"{"type":"remapIdentity","prefix":"","signedPrefix":"x"}"#,
        ] {
            assert!(serde_json::from_str::<Identity>(rule).unwrap().check().is_err(), "{rule}");
        }
        let error = serde_json::from_str::<Identity>(r#"{"type":"matchExact","tag":"x"}"#).unwrap_err().to_string();
        assert!(error.contains("tag"), "{error}");
    }
}
