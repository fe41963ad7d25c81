//! The grammars of names: what is let in, and that nothing gets in another way.

use peerpods_cloud_api::{InstanceId, InvalidName, LaunchToken, OwnerTag, Tee, Zone};
use proptest::prelude::*;

/// The grammar once more, written another way.
fn is_name(text: &str, max: usize) -> bool {
    let allowed = |c: char| matches!(c, 'A'..='Z' | 'a'..='z' | '0'..='9' | '.' | '_' | ':' | '/' | '-');
    !text.is_empty() && text.chars().count() <= max && text.chars().all(allowed)
}

fn check<T>(text: &str, max: usize, new: impl Fn(String) -> Result<T, InvalidName>) -> Result<(), TestCaseError>
where
    T: std::fmt::Display + serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let json = serde_json::to_string(text).expect("JSON");
    match new(text.to_owned()) {
        Ok(name) => {
            prop_assert!(is_name(text, max));
            prop_assert_eq!(name.to_string(), text);
            prop_assert_eq!(serde_json::to_string(&name).expect("JSON"), json.clone());
            prop_assert_eq!(serde_json::from_str::<T>(&json).expect("JSON"), name);
        }
        Err(error) => {
            prop_assert!(!is_name(text, max));
            prop_assert!(error.to_string().contains(&max.to_string()));
            prop_assert!(serde_json::from_str::<T>(&json).is_err());
        }
    }
    Ok(())
}

fn check_all(text: &str) -> Result<(), TestCaseError> {
    check(text, 128, InstanceId::new)?;
    check(text, 128, OwnerTag::new)?;
    check(text, 64, LaunchToken::new)?;
    check(text, 64, Zone::new)
}

proptest! {
    #[test]
    fn names_are_exactly_the_grammar(text in "[A-Za-z0-9._:/-]{0,130}") {
        check_all(&text)?;
    }

    #[test]
    fn names_with_anything_else_are_refused(text in "\\PC{0,20}", prefix in "[a-z]{0,3}") {
        check_all(&format!("{prefix}{text}"))?;
        check_all(&format!("{prefix}\n"))?;
    }
}

#[test]
fn tees_have_one_spelling() {
    for tee in Tee::ALL {
        let json = serde_json::to_string(&tee).expect("JSON");
        assert_eq!(json, format!("{:?}", tee.as_str()));
        assert_eq!(serde_json::from_str::<Tee>(&json).expect("JSON"), tee);
    }
    assert!(serde_json::from_str::<Tee>("\"SNP\"").is_err());
}
