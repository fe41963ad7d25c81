//! What is said of an encrypted layer: in clear beside it, and sealed inside its key packets.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use super::{Key256, PROVIDERS, PUBLIC_OPTIONS};
use crate::Digest;

/// What a manifest entry's annotations say of encryption; the others, which may be as many as the manifest has room for, are not kept.
#[derive(Debug, Default)]
pub(crate) struct Annotations(BTreeMap<String, String>);

/// What a layer's manifest entry says of its encryption. All of it is public, and nothing of it proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Encryption {
    /// HMAC of the ciphertext.
    pub(crate) hmac: Vec<u8>,
    /// Provider and key packet, as many as there are, at least one.
    pub(crate) packets: Vec<(String, String)>,
}

/// What opens a layer. Prints nothing of the key.
#[derive(Debug, Clone)]
pub struct PrivateOptions {
    pub(crate) key: Key256,
    pub(crate) nonce: [u8; NONCE_BYTES],
    /// Of the layer in clear.
    pub(crate) digest: Digest,
}

/// Bytes of the counter's first value.
pub(crate) const NONCE_BYTES: usize = 16;

/// The one cipher of ocicrypt.
const CIPHER: &str = "AES_256_CTR_HMAC_SHA256";
/// The name of the counter's first value among a cipher's options.
const NONCE: &str = "nonce";
/// Bytes of an HMAC-SHA256.
const HMAC_BYTES: usize = 32;
/// More than the private options ever have: 44 characters of key, 135 of digest, 24 of nonce, and names.
const MAX_JSON: usize = 512;
/// Key packets that are tried: each may be a question to the key broker, and the manifest is the registry's.
const MAX_PACKETS: usize = 16;
/// Annotations that are kept: the public options, and a list of packets for each of so many providers.
const MAX_ANNOTATIONS: usize = 1 + MAX_PACKETS;
/// Characters of the public options, which have some 150.
const MAX_PUBLIC: usize = 4096;

#[derive(Serialize, Deserialize)]
struct RawPublic {
    cipher: String,
    hmac: String,
    /// Options of this cipher are all private; a nonce here would not be authentic and is not looked at.
    #[serde(default)]
    cipheroptions: Option<BTreeMap<String, String>>,
}

#[derive(Serialize, Deserialize)]
struct RawPrivate {
    symkey: String,
    digest: String,
    cipheroptions: BTreeMap<String, String>,
}

impl Drop for RawPrivate {
    fn drop(&mut self) {
        self.symkey.zeroize();
    }
}

impl<'de> Deserialize<'de> for Annotations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(AnnotationsVisitor)
    }
}

struct AnnotationsVisitor;

impl<'de> Visitor<'de> for AnnotationsVisitor {
    type Value = Annotations;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Annotations, A::Error> {
        let mut kept = BTreeMap::new();
        while let Some(Wanted(name)) = entries.next_key()? {
            let Some(name) = name else {
                entries.next_value::<IgnoredAny>()?;
                continue;
            };
            if kept.len() >= MAX_ANNOTATIONS {
                return Err(A::Error::custom(format_args!("more than {MAX_ANNOTATIONS} annotations of encryption")));
            }
            kept.insert(name, entries.next_value()?);
        }
        Ok(Annotations(kept))
    }
}

/// The name of an annotation, if it is about encryption.
struct Wanted(Option<String>);

impl<'de> Deserialize<'de> for Wanted {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = Wanted;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of an annotation")
            }

            fn visit_str<E>(self, name: &str) -> Result<Wanted, E> {
                Ok(Wanted((name == PUBLIC_OPTIONS || name.starts_with(PROVIDERS)).then(|| name.to_owned())))
            }
        }
        deserializer.deserialize_str(Name)
    }
}

impl Encryption {
    /// Reads a layer's annotations.
    pub(crate) fn parse(Annotations(annotations): &Annotations) -> Result<Self, String> {
        let public = annotations.get(PUBLIC_OPTIONS).ok_or_else(|| format!("it is encrypted and has no annotation {PUBLIC_OPTIONS}"))?;
        let hmac = parse_public(public).map_err(|reason| format!("annotation {PUBLIC_OPTIONS}: {reason}"))?;
        let providers = annotations.iter().filter_map(|(name, value)| Some((name.strip_prefix(PROVIDERS)?, value)));
        let packets: Vec<_> = providers
            .flat_map(|(name, list)| list.split(',').map(move |packet| (name, packet.trim())))
            .filter(|(_, packet)| !packet.is_empty())
            .take(MAX_PACKETS + 1)
            .map(|(name, packet)| (name.chars().take(80).collect(), packet.to_owned()))
            .collect();
        match packets.len() {
            0 => Err(format!("it is encrypted and no annotation {PROVIDERS}* has its key: only keys of a key provider can be had")),
            1..=MAX_PACKETS => Ok(Self { hmac, packets }),
            _ => Err(format!("more than {MAX_PACKETS} key packets")),
        }
    }
}

fn parse_public(annotation: &str) -> Result<Vec<u8>, String> {
    if annotation.len() > MAX_PUBLIC {
        return Err(format!("longer than {MAX_PUBLIC} characters"));
    }
    let json = STANDARD.decode(annotation.trim()).map_err(|_| "not base64")?;
    let raw: RawPublic = serde_json::from_slice(&json).map_err(|error| error.to_string())?;
    if raw.cipher != CIPHER {
        let cipher: String = raw.cipher.chars().take(80).collect();
        return Err(format!("unknown cipher {cipher:?}; only {CIPHER} is supported"));
    }
    let hmac = STANDARD.decode(raw.hmac).map_err(|_| "hmac is not base64")?;
    if hmac.len() == HMAC_BYTES { Ok(hmac) } else { Err(format!("hmac has {} bytes, not {HMAC_BYTES}", hmac.len())) }
}

/// The annotation [`PUBLIC_OPTIONS`] for this HMAC.
pub(crate) fn encode_public(hmac: &[u8]) -> String {
    let raw = RawPublic { cipher: CIPHER.to_owned(), hmac: STANDARD.encode(hmac), cipheroptions: Some(BTreeMap::new()) };
    STANDARD.encode(serde_json::to_vec(&raw).unwrap_or_default())
}

impl PrivateOptions {
    /// Reads the JSON form. Reasons tell nothing of the content.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, &'static str> {
        let raw: RawPrivate = serde_json::from_slice(json).map_err(|_| "not JSON with symkey, digest and cipheroptions")?;
        let key = Zeroizing::new(STANDARD.decode(&raw.symkey).map_err(|_| "symkey is not base64")?);
        let key = Key256::from_slice(&key).map_err(|_| "symkey has not 32 bytes")?;
        let digest = raw.digest.parse().map_err(|_| "digest is not one")?;
        let nonce = raw.cipheroptions.get(NONCE).ok_or("no nonce")?;
        let nonce = STANDARD.decode(nonce).map_err(|_| "the nonce is not base64")?;
        let nonce = nonce.try_into().map_err(|_| "the nonce has not 16 bytes")?;
        Ok(Self { key, nonce, digest })
    }

    /// The JSON form that ocicrypt calls the private layer block cipher options: it holds the key in clear.
    pub fn to_json(&self) -> Zeroizing<Vec<u8>> {
        let raw = RawPrivate {
            symkey: STANDARD.encode(self.key.expose()),
            digest: self.digest.to_string(),
            cipheroptions: BTreeMap::from([(NONCE.to_owned(), STANDARD.encode(self.nonce))]),
        };
        // With room for all of it: a vector that grows leaves copies behind.
        let mut json = Zeroizing::new(Vec::with_capacity(MAX_JSON));
        if serde_json::to_writer(&mut *json, &raw).is_err() {
            // A struct of strings always has a JSON form, and a vector takes it.
            json.clear();
        }
        json
    }

    /// The digest of the layer in clear as it was read, which some tools compress before they encrypt it.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn encoded(value: &serde_json::Value) -> String {
        STANDARD.encode(value.to_string())
    }

    fn annotations(entries: &[(&str, String)]) -> Annotations {
        let entries: BTreeMap<&str, &String> = entries.iter().map(|(name, value)| (*name, value)).collect();
        serde_json::from_value(json!(entries)).unwrap()
    }

    #[test]
    fn only_annotations_of_encryption_are_kept_and_not_too_many() {
        let parse = |text: &str| serde_json::from_str::<Annotations>(text).map(|annotations| annotations.0);
        let text =
            format!(r#"{{"a":"b","{PROVIDERS}x":"YQ==","org.opencontainers.image.enc.keys.jwe":"c","n":[1],"{PUBLIC_OPTIONS}":"d"}}"#);
        assert_eq!(parse(&text).unwrap().into_keys().collect::<Vec<_>>(), [format!("{PROVIDERS}x"), PUBLIC_OPTIONS.to_owned()]);
        let many = |count| format!("{{{}", (0..count).map(|number| format!(r#""{PROVIDERS}{number}":"","#)).collect::<String>());
        assert_eq!(parse(&format!("{}\"a\":1}}", many(17))).unwrap().len(), 17);
        // It is refused where the limit is passed: what follows is not even read.
        let error = parse(&format!("{}no JSON", many(18)));
        assert!(error.unwrap_err().to_string().contains("more than 17 annotations of encryption"));
    }

    #[test]
    fn annotations_give_the_hmac_and_every_packet() {
        let public = encode_public(&[5; 32]);
        let one = format!("{PROVIDERS}attestation-agent");
        let other = format!("{PROVIDERS}other");
        let found = Encryption::parse(&annotations(&[
            (PUBLIC_OPTIONS, public.clone()),
            (&one, "YQ==,Yg==".to_owned()),
            (&other, "Yw==".to_owned()),
            ("org.opencontainers.image.enc.keys.jwe", "ZA==".to_owned()),
        ]));
        let found = found.unwrap();
        assert_eq!(found.hmac, [5; 32]);
        let packets: Vec<_> = found.packets.iter().map(|(name, packet)| (name.as_str(), packet.as_str())).collect();
        assert_eq!(packets, [("attestation-agent", "YQ=="), ("attestation-agent", "Yg=="), ("other", "Yw==")]);

        for (entries, named) in [
            (vec![], "no annotation org.opencontainers.image.enc.pubopts"),
            (vec![(PUBLIC_OPTIONS, public.clone())], "only keys of a key provider"),
            (vec![(PUBLIC_OPTIONS, public.clone()), (one.as_str(), "YQ==,".repeat(17))], "more than 16 key packets"),
            (vec![(PUBLIC_OPTIONS, "YQ==".repeat(1025)), (one.as_str(), "YQ==".to_owned())], "longer than 4096 characters"),
            (vec![(PUBLIC_OPTIONS, "!".to_owned())], "not base64"),
            (vec![(PUBLIC_OPTIONS, encoded(&json!({"cipher": "ROT13", "hmac": ""})))], "unknown cipher \"ROT13\""),
            (vec![(PUBLIC_OPTIONS, encoded(&json!({"cipher": CIPHER, "hmac": "YQ=="})))], "hmac has 1 bytes"),
        ] {
            let error = Encryption::parse(&annotations(&entries)).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }

    /// As Go's ocicrypt writes them: members in this order, an empty map of options.
    #[test]
    fn options_have_the_form_of_ocicrypt() {
        let public = STANDARD.decode(encode_public(&[0; 32])).unwrap();
        let expected = format!("{{\"cipher\":\"{CIPHER}\",\"hmac\":\"{}\",\"cipheroptions\":{{}}}}", STANDARD.encode([0; 32]));
        assert_eq!(String::from_utf8(public).unwrap(), expected);
        let private = PrivateOptions { key: Key256::from_slice(&[1; 32]).unwrap(), nonce: [2; 16], digest: Digest::of(b"x") };
        let json = private.to_json();
        let expected = format!(
            "{{\"symkey\":\"{}\",\"digest\":\"{}\",\"cipheroptions\":{{\"nonce\":\"{}\"}}}}",
            STANDARD.encode([1; 32]),
            Digest::of(b"x"),
            STANDARD.encode([2; 16])
        );
        assert_eq!(str::from_utf8(&json).unwrap(), expected);
        let again = PrivateOptions::parse(&json).unwrap();
        assert_eq!((again.key.expose(), again.nonce, again.digest()), (&[1; 32], [2; 16], &Digest::of(b"x")));
        assert!(!format!("{again:?}").contains("1, 1"), "{again:?}");
    }

    #[test]
    fn odd_private_options_are_refused_without_a_word_of_them() {
        let good = || json!({"symkey": STANDARD.encode([1; 32]), "digest": Digest::of(b"x"), "cipheroptions": {"nonce": STANDARD.encode([2; 16])}});
        for (member, value) in [
            ("symkey", json!(STANDARD.encode([1; 31]))),
            ("symkey", json!(7)),
            ("digest", json!("")),
            ("cipheroptions", json!({})),
            ("cipheroptions", json!({"nonce": STANDARD.encode([2; 12])})),
        ] {
            let mut bad = good();
            bad[member] = value;
            assert!(PrivateOptions::parse(bad.to_string().as_bytes()).is_err(), "{bad}");
        }
        assert!(PrivateOptions::parse(good().to_string().as_bytes()).is_ok());
    }
}
