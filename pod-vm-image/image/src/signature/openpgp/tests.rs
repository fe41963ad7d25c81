//! What GnuPG 2.2 wrote: `gpg --export`, and `gpg --sign` with each of the keys.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;

use super::*;

/// In every message.
const PAYLOAD: &[u8] = b"{\"critical\":1}\n";

const ED25519_KEY: &str = "mDMEaw2W8BYJKwYBBAHaRw8BAQdADn+6gwaD4dL75kX0w33QNbqhmhgRNJS5Up2Ou5sHPOy0DGVkMjU1MTlAdGVzdIiQBBMWCAA4FiEE7LvXhF7WdmkOFMqGzhMEJ07ufKIFAmsNlvACGwMFCwkIBwIGFQoJCAsCBBYCAwECHgECF4AACgkQzhMEJ07ufKLKQgEAwCUa9U3zC3OzOycvlnVtPWINadT3WHbUFFeLQxnPxXkBAPqBFp9XuyAqIz0hoewknlJB56ZVzliK5d4vxEqXF0oE";
const ED25519_MESSAGE: &str = "owGbwMvMwCF2TphF3e9dzSLG06JJDNm80z5UKyUXZZZkJifmKFkZ1nJ1NLMwiHEwaIspsrzZfb0l7lpZJp/IqTaYNlYmkB5emdQUI1NTQ0uHktTiEgYuTgGYvMEyRobTh37xrUmasXjC5J9tD2zcrs1x1j/w4fDXqbpzX9i28BsZM/zT9r8lLantIaHwrtF6cVGNH+csm4lc7NMM36zn1linIMMMAA==";
const RSA_KEY: &str = "mQENBGsNlvABCADGf1v7FueVwEQpKghukn9PkQSx4Gs7p225CSSvPEkwCmvC5j4k7zpkdDHAKbAptY2dz3VNSttiSfDQgBVuU8T1pLV97o9G931Q5ecydzLcZlUFpT0K6TpOg5NKk7EI+GJnmzyUlyhSyjV8TuKZHhvhuKQKsu7qHA4TuLMlfw59NxNavDQ0MqP7Xb6q3Jao+fXIcJMvT7XY7AJisMFKFFekwLsOXno2tz6gaTDE/SyJiydNWxs4swI+2TsX+tktCZMGTcawVJOKdZQzmt5e1dF325RqBus+mYw8bRqAw5s5MpFAUEMPctTNyMxpbii3PAWLbXkBMiyrp6dKkqLSZu4PABEBAAG0CHJzYUB0ZXN0iQFOBBMBCgA4FiEEKgy3ucJ4StCnF2BWXRXZ+y/3BDcFAmsNlvACGwMFCwkIBwIGFQoJCAsCBBYCAwECHgECF4AACgkQXRXZ+y/3BDcBwQf/XSKIwHQHMrGEh9jz+nbBeC2Jtdd2suITj9ybGnonqNE3DAZ8j9YUF/wwiRB4za2s3vI+RMar7PUYo5ChxW/xHKdfeD/TjSsO5//fa5oQgAFzmr1gZnM1yVriwF+runavmSL8Md2zpdHX0nToUUb6HFYnWDXAX7SgQ3OLkqG54TviORPu6MZ4ITFje/DbWUljvD0fqWVyd/IVBej8FbXHyPBNW34Tum+i3rNO9mLY+3PLXdyi8tHghjrm62d52q9zIR2YQIeR4JOu9J/kSE+bQf+/k1wao8H3IfqUwZdzIDvvgqYCuTbvXYsSqo1Bk1vSmjK3f7eKeQJnpQsh152Jfw==";
const RSA_MESSAGE: &str = "owGbwMvMwMUYK3rzt/53FnPG06JJDNm80z5UKyUXZZZkJifmKFkZ1nJ1MtqyMDByMaiLKbJo8WzfeajC68Jy8YQwmD5WJpAmTpmi4kSHktTiEgYuTgGY3LEn7P8UUzb/DuHXP5vx39Gyo6hMaErx85be5dkaSX8+ic1cw/Rh2aLqo9zMFo2nJi0Wcd7tKPBCs+JN6OOnz4+EVnV9YPs3hbFl4YytCy59vGVU8fNxbBJrWdw9zep79wqCQj28ptnoBTjI2q1pfcYz+8EDoayoOAud8+9Ed7o3pj7eeErjztt+44m3HR4IN78r+3HwKteZhJkRO7o7555edUWH6W/jzFQziadNZ7yfcrjPn+khIf04SnZjU/uME+cNnUtjsj+IzRdgtpTYJqIXXbDnbJbA7EfhOz94Xk9Qb545w8zAfu6X8KoWJbsHzCZ1yZ+PBxReVTRcu9j/JLuEzd04xTuZ948eznujKnehlgMA";
const P256_KEY: &str = "mFIEaw2W8BMIKoZIzj0DAQcCAwQKPevJmpPXycJDwaBGOuTC8ELQaHccze8H16ifWVYLIWgKS5fHnVlP+Ve0EYJvrNQTBigd5EnHHtq2u8/nAEiitAlwMjU2QHRlc3SIkAQTEwgAOBYhBGWtY5qLhu2N9ikWQIADu1saFGx2BQJrDZbwAhsDBQsJCAcCBhUKCQgLAgQWAgMBAh4BAheAAAoJEIADu1saFGx26HcBAKZH3lH4T3SMMDUKcsQ/2nIKmbSieauTFUbNhi2pCAyOAQDv/GpshJH0dhWZDe9ydxBfEoaGGuTujLrqybzqBTGENQ==";
const P256_MESSAGE: &str = "owGbwMvMwCHcwLw7Wkokp4zxtGgSQzbvtA/VSslFmSWZyYk5SlaGtVwdDSwMwhwMGmKKLKlrk2d1t73t/aYp5gDTxsoE0sMlU2BkauZQklpcwsDFKQCTlJBkZOgLWeARyDvZlMHItF85xXf5BS6ZWPsm+S3Bt6TCsy5cj2P4Z3lDPfZzykSOOZmfY6ZOL/n6f/mcG8unP3vL1LDHapfLxLMA";
const P384_KEY: &str = "mG8Eaw2W8BMFK4EEACIDAwTp0w+6/02/54zMATEQCc7CGqCXjZQg/tOzqJmudl6gP+GgAQ5V86xSFJRCzbNCLU0zG0v7Vo+rnrZeF+GNVRJ5vqfyhVec7cgwWEeNPoME0CG/DLbLI/9bx/CR6lFcfzS0CXAzODRAdGVzdIiwBBMTCQA4FiEEtrmOD3C5du5H1mf4WkC9upe/Cc8FAmsNlvACGwMFCwkIBwIGFQoJCAsCBBYCAwECHgECF4AACgkQWkC9upe/Cc/FiQGAqrD2MPua7gSKd7aiRhUi6QhZfNMchvNvNl7NXT9SBBif8MtIshCNhP7X+rv+wf9yAX93o1SCbkXPcobk2LxK+AkfMrxri+w16c8XXB3CFiMZCY30RkM3bbX78sVaX/C1xew=";
const P384_MESSAGE: &str = "owGbwMvMwCkc5bB31/T9nOcZT4smMWTzTvtQrZRclFmSmZyYo2RlWMvVsYCFQZiTQUNMkWXbzj7+gp1l79yvpf+AaWNlAunhkikwtjBxKEktLmHg4hSASQacY2z4s1noZUcGm5KPItsjkf7214dNkj4zGB0Q2l369fATz+jrzKsq/jKmZe/8Ji1xRi+R8QZjDVdM9UoTvxM/Hbn/nanNUeH18OjUb/iePfn0lQjmfdEX4pbViSmXF636/miJqHRJX+5RAA==";
const ED25519_ARMORED: &str = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmDMEaw2W8BYJKwYBBAHaRw8BAQdADn+6gwaD4dL75kX0w33QNbqhmhgRNJS5Up2O\nu5sHPOy0DGVkMjU1MTlAdGVzdIiQBBMWCAA4FiEE7LvXhF7WdmkOFMqGzhMEJ07u\nfKIFAmsNlvACGwMFCwkIBwIGFQoJCAsCBBYCAwECHgECF4AACgkQzhMEJ07ufKLK\nQgEAwCUa9U3zC3OzOycvlnVtPWINadT3WHbUFFeLQxnPxXkBAPqBFp9XuyAqIz0h\noewknlJB56ZVzliK5d4vxEqXF0oE\n=qkio\n-----END PGP PUBLIC KEY BLOCK-----\n";
const ED25519_ZLIB: &str = "owJ4nJvAy8zAIXZOmEXd713NIsbTokkM2bzTPlQrJRdllmQmJ+YoWRnWcnU0szCIcTBoiymyvNl9vSXuWlkmn8ipNpg2ViaQHl6Z1BQjU1NDS4eS1OISBi5OAZi8wTJGhtOHfvGtSZqxeMLkn20PbNyuzXHWP/Dh8NepunNf2LbwGxkz/NP2vyUtqe0hofCu0XpxUY0f5yybiVzs0wzfrOfWWKcgwwwAVuk/pg==";
const ED25519_BZIP2: &str = "owNCWmg2MUFZJlNZW0sIFgAAPP///vvPbHDK+j5JQYABPiwdDi1Aa1YZBYAIWBkBkEBFQjEgAJIVIAAAAABoAAA0AGg0Bo0PRDJ6T1DtGmQNAAADQAZAA0HqNNGQGmIaMgaAGUIzsizT97Z1FLgBSBXsR2wsmhlonLAXA+nSFQpaoxMfHU8ERkyIenXPCqOK/5AsfFkRtagCLwFH+uSxiZo6WcJhSPMUJcoYc3FeloHSGUaHGtEimSZEVQE4Qh6+beNpGaUA3U67kkBRP2BGBAyIgeSWj6R+CSWCmmIEdCwJj/DcfxdyRThQkFtLCBY=";
const ED25519_UNCOMPRESSED: &str = "kA0DAAgWzhMEJ07ufKIByxViAGsNlvB7ImNyaXRpY2FsIjoxfQqIgwQAFggAKxYhBOy714Re1nZpDhTKhs4TBCdO7nyiBQJrDZbwDRxlZDI1NTE5QHRlc3QACgkQzhMEJ07ufKIwpgEAy8L6DqximKOQk/mG4DxG1pxDL8Dww/WVLZ3oPYQPMjMA/itP2hsZK0gYIO6BO6NyfE4JmjyRCgeWMeyvCyiuIBwD";
const ED25519_TEXT: &str = "owGbwMvMyCF2TphF3e9dzSLG02IlDNm80z5UKyUXZZZkJifmKFkZ1vJydTSzMIpxMGiLKbK82X29Je5aWSafyKk2mD5WJpAmXpnUFCNTU0NLh5LU4hIGLk4BmPwKXkaGRwty+D1WC1wtOrdNuC/azfJzV0K1jUvfx3usS8+Exv24yMjwIbugIK9A1q3n933DZvsTfKlcr01CF6Yxy6+RZsnzWMQHAA==";
const ED25519_EXPIRING: &str = "owGbwMvMwCF2TphF3e9dzSLG06JJDNm80z5UKyUXZZZkJifmKFkZ1nJ1dLIwiHEwGIopsrzZfb0l7lpZJp/IqTaYNlYmkB7WZsaHxg28MqkpRqamhpYOJanFJQxcnAIwVd2FDP9sdSJUNhomu7qGfhebudPKdk7vtZt/DhXEfJPmbPDan6jFyHD6BIv9S/GOxyWsUzY+YV7CcLtH9KDpsVivZQFTtWQ+eTAAAA==";
const ED25519_SHA1: &str = "owGbwMvMwCR2TphF3e9dzSLG06JJDNm80z5UKyUXZZZkJifmKFkZ1nJ1NLMwiDExaIspsrzZfb0l7lpZJp/IqTaYNlYmkB5emdQUI1NTQ0uHktTiEgYuTgGY/BcWRoYlRw9v+vuJJeTvuhvrHu8IOlh07eKcPOaVFxaL3r6iK3Q+h5Ghd4Nw/+Wf27eeLEqXnMqxXu1h/DPB3SuOsKkFuhpwersxAwA=";
const ED25519_DETACHED: &str = "iIMEABYIACsWIQTsu9eEXtZ2aQ4UyobOEwQnTu58ogUCaw2W8A0cZWQyNTUxOUB0ZXN0AAoJEM4TBCdO7nyiMKYBAMvC+g6sYpijkJP5huA8RtacQy/A8MP1lS2d6D2EDzIzAP4rT9obGStIGCDugTujcnxOCZo8kQoHljHsrwsoriAcAw==";
const TWO_SIGNATURES: &str = "owGbwMvMwMUYK3rzt/53FnOGCUAuh9g5YRZ1v3c1ixhPiyYxZPNO+1CtlFyUWZKZnJijZGVYy9XRzMIgxsGgLabI8mb39Za4a2WZfCKn2mDaWJlAenhlUlOMTE0NLR1KUotLGLg4BWDyBssYGU4f+sW3JmnG4gmTf7Y9sHG7NsdZ/8CHw1+n6s59YdvCb2TM8E/b/5a0pLaHhMK7RuvFRTV+nLNsJnKxTzN8s55bY52CDHMnoy0LAyMXgzrQFVo823ceqvC6sFw8IQzmF4grOGWKihPhLoDJHXvC/k8xZfPvEH79sxn/HS07isqEphQ/b+ldnq2R9OeT2Mw1TB+WLao+ys1s0Xhq0mIR592OAi80K96EPn76/EhoVdcHtn9TGFsWzti64NLHW0YVPx/HJrGWxd3TrL53ryAo1MNrmo1egIOs3ZrWZzyzHzwQyoqKs9A5/050p3tj6uONpzTuvO03nnjb4YFw87uyHwevcp1JmBmxo7tz7ulVV3SY/jbOTDWTeNp0xvsph/v8mR4S0o+jZDc2tc84cd7QuTQm+4PYfAFmS4ltInrRBXvOZgnMfhS+84Pn9QT15pkzzAzs534Jr2pRsnvAbFKX/Pl4QOFVRcO1i/1PskvY3I1TvJN5/+jhvDeqchdqOQA=";
const SUBKEY_KEY: &str = "mDMEaw2W8BYJKwYBBAHaRw8BAQdAzODBtshLseOO8/5p88UCzR9SQwAp46V7Sk5uZMlLM/m0CHN1YkB0ZXN0iJAEExYIADgWIQQd998VoIQHTn9BM5xk2ukDAnJ5kQUCaw2W8AIbAQULCQgHAgYVCgkICwIEFgIDAQIeAQIXgAAKCRBk2ukDAnJ5kQVPAP9Z/rEnC0+RHwpDUyGyvRNMotGESe7qoGb1tqcgGwranAD/bP0nM9IFSOF2bYTRxJLGmt1gWFlaZJHCdgo6p5Hzeg+4MwRrDZbwFgkrBgEEAdpHDwEBB0CIGOwC+md253S8tchDeDeqyktoUFIoTStCI5bIGnQv6ojvBBgWCAAgFiEEHfffFaCEB05/QTOcZNrpAwJyeZEFAmsNlvACGwIAgQkQZNrpAwJyeZF2IAQZFggAHRYhBNFyBP9MgFQHdPFS0c6gzjx3HrSJBQJrDZbwAAoJEM6gzjx3HrSJD7wBANDvfCXe28N6Eqr0iFRu2ObTq81UVVTfAFn4YNM6Gf4EAQCKacmqoOG24MLW/yAkRUuauxK86+Ac0hdVdo8TpZzhAIjFAP97AGj4JFr29hmwvX+8SDXbZfEuiozsVsy8mCGf9XvXrQEArxYiJStHsQFvlweFElZN69QDQncYtNwlV0IrAccT0Qs=";
const SUBKEY_MESSAGE: &str = "owGbwMvMwCF2bsE5m3K5LZ2Mp0WTGLJ5p32oVkouyizJTE7MUbIyrOXqqGdhEONgUBdTZLlYxPLfpyGEveRj0EWYNlYmkB5OmeLSJIeS1OISBi5OAZjcBRZGhnNcmfbfZ83KcHoQJfBCP1Hr6NK2nWLnjz08YfgoYq5j3FJGhqe29cxztp+2V5XY8qRrzsq/0tvllKX3bNA8FMIv2Zk2jw8A";
const REVOKED_KEY: &str = "mDMEaw2W8RYJKwYBBAHaRw8BAQdA0J9mXrs20ePOizxXtidyM5D3V6XKl8HjN+pEBPTFSMmIeAQgFggAIBYhBJvlJ7j0tCxI0mYXJTvUF0ZfzRxYBQJrDZbxAh0AAAoJEDvUF0ZfzRxYBBAA/jOq0tF1jzI6H4Jndu6ggEuzTn1iegNaETYTcRWt3aj3AP9l9uI5SThUC/32IoccT6+egtTJLAM3uDbCEPpKEZwhBrQIcmV2QHRlc3SIkAQTFggAOBYhBJvlJ7j0tCxI0mYXJTvUF0ZfzRxYBQJrDZbxAhsDBQsJCAcCBhUKCQgLAgQWAgMBAh4BAheAAAoJEDvUF0ZfzRxY4vsA/jqmMSM1uyCni101VsFAh5j38NEBhSDoHLDKk2g7lRBeAQDBFpdS9xPi93JOVwz6mrr07sAVTfQ7a13RLdltANUnDw==";
fn bytes(base64: &str) -> Vec<u8> {
    STANDARD.decode(base64).unwrap()
}

fn ring(base64: &str) -> GpgKeys {
    GpgKeys::parse(&bytes(base64)).unwrap()
}

#[test]
fn messages_of_gpg_open_with_their_keys_only() {
    let all = [
        (ED25519_KEY, ED25519_MESSAGE),
        (RSA_KEY, RSA_MESSAGE),
        (P256_KEY, P256_MESSAGE),
        (P384_KEY, P384_MESSAGE),
        (SUBKEY_KEY, SUBKEY_MESSAGE),
    ];
    for (key, message) in all {
        let opened = ring(key).open(&bytes(message));
        assert_eq!(opened.as_deref(), Ok(PAYLOAD), "{key}");
        for (other, _) in all.iter().filter(|(other, _)| *other != key) {
            assert!(ring(other).open(&bytes(message)).unwrap_err().contains("not made with one of the policy's keys"));
        }
    }
    let both = [bytes(RSA_KEY), bytes(ED25519_KEY)].concat();
    assert_eq!(GpgKeys::parse(&both).unwrap().open(&bytes(ED25519_MESSAGE)).as_deref(), Ok(PAYLOAD));
}

#[test]
fn armor_and_all_compressions_but_bzip2_are_read() {
    let ring = GpgKeys::parse(ED25519_ARMORED.as_bytes()).unwrap();
    for message in [ED25519_MESSAGE, ED25519_ZLIB, ED25519_UNCOMPRESSED] {
        assert_eq!(ring.open(&bytes(message)).as_deref(), Ok(PAYLOAD));
    }
    assert!(ring.open(&bytes(ED25519_BZIP2)).unwrap_err().contains("compression algorithm 3"));
}

#[test]
fn what_does_not_count_is_refused() {
    let ring = ring(ED25519_KEY);
    for (message, named) in [
        (ED25519_TEXT, "not that of a binary document"),
        (ED25519_EXPIRING, "it expires"),
        (ED25519_SHA1, "hash algorithm 2"),
        (ED25519_DETACHED, "not an OpenPGP message with one signature"),
        (TWO_SIGNATURES, "not an OpenPGP message with one signature"),
        ("", "no OpenPGP data"),
    ] {
        let error = ring.open(&bytes(message)).unwrap_err();
        assert!(error.contains(named), "{named}: {error}");
    }
    assert!(GpgKeys::parse(&bytes(REVOKED_KEY)).unwrap_err().contains("no key that can verify"));
    assert!(GpgKeys::parse(b"").is_err());
    assert!(GpgKeys::parse(&bytes(ED25519_MESSAGE)).is_err());
}

/// The primary key alone does not vouch for what its subkey signed, nor does a subkey whose binding was changed.
#[test]
fn subkeys_count_only_while_they_are_bound() {
    let whole = bytes(SUBKEY_KEY);
    let all = packets(&whole).unwrap();
    let subkey = all.iter().position(|packet| packet.tag == PUBLIC_SUBKEY).unwrap();
    let binding = all.len() - 1;
    assert_eq!((subkey, all[binding].tag), (binding - 1, SIGNATURE));
    let again = |change: &dyn Fn(usize, &mut Vec<u8>) -> bool| {
        let mut bytes = Vec::new();
        for (index, packet) in packets(&whole).unwrap().into_iter().enumerate() {
            let mut body = packet.body;
            if change(index, &mut body) {
                bytes.extend_from_slice(&[0xc0 | packet.tag, 255]);
                bytes.extend_from_slice(&u32::try_from(body.len()).unwrap().to_be_bytes());
                bytes.extend_from_slice(&body);
            }
        }
        GpgKeys::parse(&bytes).unwrap().open(&self::bytes(SUBKEY_MESSAGE))
    };
    assert_eq!(again(&|_, _| true).as_deref(), Ok(PAYLOAD));
    assert!(again(&|index, _| index != binding).is_err());
    assert!(again(&|index, _| index < subkey).is_err());
    let length = all[binding].body.len();
    for at in [6, 7, length - 1] {
        assert!(
            again(&|index, body| {
                if index == binding {
                    body[at] ^= 1;
                }
                true
            })
            .is_err(),
            "{at}"
        );
    }
}

proptest! {
    #[test]
    fn changed_messages_do_not_open_to_something_else(at in 0_usize.., bit in 0_u8..8) {
        let mut message = bytes(ED25519_UNCOMPRESSED);
        let at = at % message.len();
        message[at] ^= 1 << bit;
        if let Ok(payload) = ring(ED25519_KEY).open(&message) {
            prop_assert_eq!(payload, PAYLOAD);
        }
    }

    #[test]
    fn any_bytes_are_survived(bytes: Vec<u8>) {
        let _ = ring(ED25519_KEY).open(&bytes);
        let _ = GpgKeys::parse(&bytes);
    }
}
