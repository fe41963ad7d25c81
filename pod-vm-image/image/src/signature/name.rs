//! Names of images as signatures and policies compare them.

use oci_spec::distribution::Reference;

/// A reference in its full form. A tag is there only if it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    /// Host and path.
    pub(crate) repository: String,
    pub(crate) tag: Option<String>,
    pub(crate) digest: Option<String>,
}

impl Name {
    /// A reference that was parsed; one without tag and digest means `latest`.
    pub(crate) fn of(reference: &Reference) -> Self {
        Self {
            repository: format!("{}/{}", reference.registry(), reference.repository()),
            tag: reference.tag().map(str::to_owned),
            digest: reference.digest().map(str::to_owned),
        }
    }

    /// What a signature or a policy names.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut name = Self::of(&text.parse().ok()?);
        let before = text.split('@').next().unwrap_or(text);
        let last = before.rsplit('/').next().unwrap_or(before);
        // `host:port` alone is a repository of Docker Hub with a tag, which is how the parser reads it too.
        if !last.contains(':') {
            name.tag = None;
        }
        Some(name)
    }

    pub(crate) fn is_repository(&self) -> bool {
        self.tag.is_none() && self.digest.is_none()
    }

    /// The keys under which a policy may have something to say, the most specific first: the reference, the repository and what is above it,
    /// domains, and everything.
    pub(crate) fn scopes(&self) -> Vec<String> {
        let repository = &self.repository;
        let mut scopes = Vec::new();
        if let (Some(tag), Some(digest)) = (&self.tag, &self.digest) {
            scopes.push(format!("{repository}:{tag}@{digest}"));
        }
        scopes.extend(self.digest.as_ref().map(|digest| format!("{repository}@{digest}")));
        scopes.extend(self.tag.as_ref().map(|tag| format!("{repository}:{tag}")));
        let mut above = repository.as_str();
        loop {
            scopes.push(above.to_owned());
            let Some((shorter, _)) = above.rsplit_once('/') else { break };
            above = shorter;
        }
        let mut host = above.split(':').next().unwrap_or(above);
        while let Some((_, domain)) = host.split_once('.') {
            scopes.push(format!("*.{domain}"));
            host = domain;
        }
        scopes.push(String::new());
        scopes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scopes(reference: &str) -> Vec<String> {
        Name::of(&reference.parse().unwrap()).scopes()
    }

    #[test]
    fn scopes_go_from_the_reference_to_everything() {
        assert_eq!(
            scopes("a.b.example.com:5000/team/sub/app:1"),
            [
                "a.b.example.com:5000/team/sub/app:1",
                "a.b.example.com:5000/team/sub/app",
                "a.b.example.com:5000/team/sub",
                "a.b.example.com:5000/team",
                "a.b.example.com:5000",
                "*.b.example.com",
                "*.example.com",
                "*.com",
                ""
            ]
        );
        assert_eq!(scopes("busybox")[..3], ["docker.io/library/busybox:latest", "docker.io/library/busybox", "docker.io/library"]);
        let digest = format!("sha256:{}", "a".repeat(64));
        let both = scopes(&format!("r.example/app:1@{digest}"));
        assert_eq!(both[..3], [format!("r.example/app:1@{digest}"), format!("r.example/app@{digest}"), "r.example/app:1".to_owned()]);
    }

    #[test]
    fn tags_that_are_not_written_are_not_invented() {
        assert!(Name::parse("r.example:5000/app").unwrap().is_repository());
        assert!(Name::parse("busybox").unwrap().is_repository());
        assert_eq!(Name::parse("index.docker.io/library/busybox").unwrap().repository, "docker.io/library/busybox");
        assert_eq!(Name::parse("r.example:5000/app:1").unwrap().tag.as_deref(), Some("1"));
        let digest = format!("sha256:{}", "a".repeat(64));
        let name = Name::parse(&format!("r.example/app@{digest}")).unwrap();
        assert_eq!((name.tag, name.digest), (None, Some(digest)));
        assert_eq!(Name::parse("not a name"), None);
    }
}
