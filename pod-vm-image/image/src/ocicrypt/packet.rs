//! Key packets of the Confidential Containers project: a layer's private options, sealed with AES-256-GCM.
//!
//! Version 1 is `{kid, wrapped_data, iv, wrap_type}`; version 2 adds `version`, `provider`, `provider_settings` and `annotations`, where only
//! the provider `kbs` means what version 1 does. Others unwrap in a key management service of a cloud, which is not done here.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::error::Unspecified;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{DecryptError, Key256, PrivateOptions};

/// A packet as it was found.
#[derive(Debug)]
pub(crate) struct Packet {
    /// The resource that is the wrapping key.
    pub(crate) kid: String,
    /// Ciphertext and tag.
    wrapped: Vec<u8>,
    iv: [u8; NONCE_LEN],
}

#[derive(Serialize, Deserialize)]
struct RawPacket {
    kid: String,
    wrapped_data: String,
    #[serde(default)]
    iv: Option<String>,
    #[serde(default)]
    wrap_type: Option<String>,
    #[serde(default, skip_serializing)]
    version: Option<String>,
    #[serde(default, skip_serializing)]
    provider: Option<String>,
}

/// The one way of wrapping that the project's tools know and use.
const WRAP_TYPE: &str = "A256GCM";
/// The one version that says so.
const VERSION: &str = "0.1.0";
/// The provider that hands out keys instead of unwrapping.
const PROVIDER: &str = "kbs";
/// What names a key: the packet comes from the registry, which must not name anything else.
const SCHEME: &str = "kbs://";
/// Characters of a key's name.
const MAX_KID: usize = 1024;
/// Characters of a packet, which has less than a thousand beside the key's name, and what a cloud's settings take in version 2.
const MAX_PACKET: usize = 16 << 10;

impl Packet {
    /// Reads one entry of the annotation.
    pub(crate) fn parse(base64: &str) -> Result<Self, String> {
        if base64.len() > MAX_PACKET {
            return Err(format!("longer than {MAX_PACKET} characters"));
        }
        let json = STANDARD.decode(base64).map_err(|_| "not base64")?;
        let raw: RawPacket = serde_json::from_slice(&json).map_err(|error| error.to_string())?;
        let shown = |text: &str| text.chars().take(80).collect::<String>();
        if let Some(version) = raw.version.filter(|version| version != VERSION) {
            return Err(format!("version {:?}; only {VERSION} is supported", shown(&version)));
        }
        if let Some(provider) = raw.provider.filter(|provider| provider != PROVIDER) {
            return Err(format!("provider {:?}; only {PROVIDER} is supported", shown(&provider)));
        }
        let wrap_type = raw.wrap_type.ok_or("no wrap_type")?;
        if wrap_type != WRAP_TYPE {
            return Err(format!("wrap_type {:?}; only {WRAP_TYPE} is supported", shown(&wrap_type)));
        }
        if !raw.kid.starts_with(SCHEME) || raw.kid.len() > MAX_KID || raw.kid.chars().any(char::is_control) {
            return Err(format!("kid {:?} is not the URI of a resource ({SCHEME}…)", shown(&raw.kid)));
        }
        let iv = STANDARD.decode(raw.iv.ok_or("no iv")?).map_err(|_| "iv is not base64")?;
        let iv = iv.try_into().map_err(|_| "iv has not 12 bytes")?;
        let wrapped = STANDARD.decode(raw.wrapped_data).map_err(|_| "wrapped_data is not base64")?;
        Ok(Self { kid: raw.kid, wrapped, iv })
    }

    /// What the packet holds, if this is its key.
    pub(crate) fn open(&self, key: &Key256) -> Result<PrivateOptions, DecryptError> {
        let wrong = |_: Unspecified| DecryptError::WrongKey { kid: self.kid.clone() };
        let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.expose()).map_err(wrong)?);
        let mut bytes = Zeroizing::new(self.wrapped.clone());
        let json = cipher.open_in_place(Nonce::assume_unique_for_key(self.iv), Aad::empty(), &mut bytes[..]).map_err(wrong)?;
        PrivateOptions::parse(json).map_err(|reason| DecryptError::Options { kid: self.kid.clone(), reason })
    }
}

/// A packet of version 1, in base64.
pub(crate) fn seal(options: &PrivateOptions, key: &Key256, kid: &str) -> Result<String, Unspecified> {
    let mut iv = [0; NONCE_LEN];
    aws_lc_rs::rand::fill(&mut iv)?;
    seal_with(options, key, kid, iv)
}

fn seal_with(options: &PrivateOptions, key: &Key256, kid: &str, iv: [u8; NONCE_LEN]) -> Result<String, Unspecified> {
    let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.expose())?);
    // Encrypted where it is: no second copy of the key is left behind, and the tag comes separately.
    let mut bytes = options.to_json();
    let tag = cipher.seal_in_place_separate_tag(Nonce::assume_unique_for_key(iv), Aad::empty(), &mut bytes[..])?;
    let raw = RawPacket {
        kid: kid.to_owned(),
        wrapped_data: STANDARD.encode([&bytes[..], tag.as_ref()].concat()),
        iv: Some(STANDARD.encode(iv)),
        wrap_type: Some(WRAP_TYPE.to_owned()),
        version: None,
        provider: None,
    };
    Ok(STANDARD.encode(serde_json::to_vec(&raw).map_err(|_| Unspecified)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::Digest;

    fn options() -> PrivateOptions {
        PrivateOptions { key: Key256::from_slice(&[1; 32]).unwrap(), nonce: [2; 16], digest: Digest::of(b"x") }
    }

    fn json_of(packet: &str) -> Value {
        serde_json::from_slice(&STANDARD.decode(packet).unwrap()).unwrap()
    }

    fn parse(packet: &Value) -> Result<Packet, String> {
        Packet::parse(&STANDARD.encode(packet.to_string()))
    }

    #[test]
    fn packet_has_the_known_form_and_opens_in_both_versions() {
        let key = Key256::from_slice(&[9; 32]).unwrap();
        let sealed = seal_with(&options(), &key, "kbs:///default/key/1", [3; 12]).unwrap();
        let mut packet = json_of(&sealed);
        assert_eq!(packet["wrapped_data"], WRAPPED);
        assert_eq!(packet.as_object().unwrap().keys().collect::<Vec<_>>(), ["iv", "kid", "wrap_type", "wrapped_data"]);
        assert_eq!(Packet::parse(&sealed).unwrap().open(&key).unwrap().key.expose(), &[1; 32]);

        packet["version"] = json!("0.1.0");
        packet["provider"] = json!("kbs");
        packet["provider_settings"] = json!({"region": "x"});
        packet["annotations"] = json!({});
        let second = parse(&packet).unwrap();
        assert_eq!((second.kid.as_str(), second.open(&key).unwrap().nonce), ("kbs:///default/key/1", [2; 16]));
        let other = second.open(&Key256::from_slice(&[8; 32]).unwrap()).unwrap_err();
        assert_eq!(other.to_string(), "key kbs:///default/key/1 does not open its key packet");
    }

    /// From Python's `cryptography`: AESGCM(09…09).encrypt(03…03, json, None).
    const WRAPPED: &str = "qraYCzjXDtX5mI00vX2Qs+i6gxDVuddqrGaUWCej7vm3SXjVVwSKbxiGkgPS2bYd0w/61IGEb4AufbxnfBpYznKKL/oIA7bn+hLBXjOBxVc5pViNUtW+3zRkPB9W4RnhM4E0mrtnY6maeiGG1848VW7Nbplfx65UyVvbkhCcQnRrEwy9jIC4gIJ4XUT0O5DDHFSNYJVYA3nn0CfL28Gxy0hBotIcHSnt7U7RB386YE1FC4zFj3VAAKB4kfabIviVTFHlDqCFvnxZqI2WjYEzvp8=";

    #[test]
    fn what_cannot_be_unwrapped_here_is_named() {
        let good = json_of(&seal(&options(), &Key256::from_slice(&[9; 32]).unwrap(), "kbs:///a/b/c").unwrap());
        for (member, value, named) in [
            ("version", json!("0.2.0"), "version \"0.2.0\""),
            ("provider", json!("aliyun"), "provider \"aliyun\""),
            ("wrap_type", json!("A256CTR"), "wrap_type \"A256CTR\""),
            ("wrap_type", Value::Null, "no wrap_type"),
            ("iv", Value::Null, "no iv"),
            ("iv", json!("YQ=="), "12 bytes"),
            ("kid", json!("file:///etc/shadow"), "file:///etc/shadow"),
            ("kid", json!("kbs://".to_owned() + &"a".repeat(2000)), "not the URI"),
        ] {
            let mut bad = good.clone();
            bad[member] = value;
            let error = parse(&bad).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
        assert_eq!(Packet::parse("?").unwrap_err(), "not base64");
        assert_eq!(Packet::parse(&"?".repeat(MAX_PACKET + 1)).unwrap_err(), "longer than 16384 characters");
    }

    proptest! {
        #[test]
        fn changed_packets_do_not_open(at in 0_usize.., bit in 0_u8..8) {
            let key = Key256::from_slice(&[9; 32]).unwrap();
            let mut packet = Packet::parse(&seal(&options(), &key, "kbs:///a/b/c").unwrap()).unwrap();
            let at = at % packet.wrapped.len();
            packet.wrapped[at] ^= 1 << bit;
            prop_assert!(matches!(packet.open(&key), Err(DecryptError::WrongKey { .. })), "{:?}", at);
        }

        #[test]
        fn any_packet_is_survived(bytes: Vec<u8>) {
            let _ = Packet::parse(&STANDARD.encode(bytes));
        }
    }
}
