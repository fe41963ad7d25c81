//! A request's form. Every parameter must be looked at by somebody: what nobody knows is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Element;
use super::error::Ec2Error;

/// What every request may carry.
const COMMON: [&str; 2] = ["Action", "Version"];

/// A form, and which of its parameters were looked at.
#[derive(Debug)]
pub(super) struct Query {
    fields: BTreeMap<String, String>,
    used: Mutex<BTreeSet<String>>,
}

/// Which part of a list is asked for.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) from: usize,
    pub(super) size: usize,
}

impl Query {
    pub(super) fn parse(body: &[u8]) -> Self {
        let fields = form_urlencoded::parse(body).into_owned().collect();
        Self { fields, used: Mutex::new(COMMON.map(str::to_owned).into()) }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&String, &String)> {
        self.fields.iter()
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        let value = self.fields.get(key)?;
        self.used().insert(key.to_owned());
        Some(value)
    }

    pub(super) fn required(&self, key: &str) -> Result<&str, Ec2Error> {
        let missing = || Ec2Error::new("MissingParameter", 400, format!("The request must contain the parameter {key}"));
        self.text(key).ok_or_else(missing)
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<u32>, Ec2Error> {
        self.text(key).map(|text| text.parse().map_err(|_| Ec2Error::value(key, text))).transpose()
    }

    pub(super) fn boolean(&self, key: &str) -> Result<Option<bool>, Ec2Error> {
        self.text(key).map(|text| text.parse().map_err(|_| Ec2Error::value(key, text))).transpose()
    }

    /// `key.1`, `key.2`, …
    pub(super) fn list(&self, key: &str) -> Vec<String> {
        (1..).map_while(|number| self.text(&format!("{key}.{number}")).map(str::to_owned)).collect()
    }

    /// The beginnings of structures in a list: `key.1.`, `key.2.`, … as far as there are any.
    pub(super) fn structures(&self, key: &str) -> Vec<String> {
        let begin = |number: &u32| format!("{key}.{number}.");
        (1..).take_while(|number| self.has(&begin(number))).map(|number| begin(&number)).collect()
    }

    fn has(&self, begin: &str) -> bool {
        self.fields.range(begin.to_owned()..).next().is_some_and(|(key, _)| key.starts_with(begin))
    }

    /// `MaxResults` and `NextToken`; without the first all is one page.
    pub(super) fn page(&self, largest: u32) -> Result<Page, Ec2Error> {
        let size = match self.number("MaxResults")? {
            Some(size) if (5..=largest).contains(&size) => usize::try_from(size).unwrap_or(usize::MAX),
            Some(size) => return Err(Ec2Error::value("MaxResults", &size.to_string())),
            None => usize::MAX,
        };
        let from = match self.text("NextToken") {
            Some(token) => token
                .strip_prefix("from-")
                .and_then(|from| from.parse().ok())
                .ok_or_else(|| Ec2Error::new("InvalidNextToken", 400, "The token is not one that a previous answer held."))?,
            None => 0,
        };
        Ok(Page { from, size })
    }

    fn used(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses what nobody has looked at.
    pub(super) fn finish(&self) -> Result<(), Ec2Error> {
        let used = self.used();
        match self.fields.keys().find(|key| !used.contains(*key)) {
            Some(key) => Err(Ec2Error::new("UnknownParameter", 400, format!("The parameter {key} is not recognized"))),
            None => Ok(()),
        }
    }
}

impl Page {
    /// This page's items, and the next page's token in the answer if there is one.
    pub(super) fn cut<T>(&self, items: Vec<T>, answer: Element) -> (Vec<T>, Element) {
        let all = items.len();
        let items: Vec<T> = items.into_iter().skip(self.from).take(self.size).collect();
        let next = self.from + items.len();
        let token = (next < all).then(|| format!("from-{next}"));
        (items, answer.maybe("nextToken", token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_looks_at_is_refused() {
        let query = Query::parse(b"Action=A&Version=1&InstanceId.1=i-1&InstanceId.2=i-2&Filter.1.Name=n&Filter.1.Value.1=v");
        assert_eq!(query.list("InstanceId"), ["i-1", "i-2"]);
        assert_eq!(query.structures("Filter"), ["Filter.1."]);
        let said = query.finish().expect_err("the filter is not read");
        assert_eq!(said.code, "UnknownParameter");
        assert_eq!((query.text("Filter.1.Name"), query.list("Filter.1.Value")), (Some("n"), vec!["v".to_owned()]));
        assert!(query.finish().is_ok());
    }

    #[test]
    fn pages_lead_to_each_other() {
        let query = Query::parse(b"MaxResults=5&NextToken=from-5");
        let (items, answer) = query.page(1000).expect("a page").cut((0..12).collect(), Element::new("A"));
        assert_eq!(items, [5, 6, 7, 8, 9]);
        assert!(answer.to_document().contains("<nextToken>from-10</nextToken>"));
        assert!(Query::parse(b"MaxResults=4").page(1000).is_err() && Query::parse(b"NextToken=x").page(1000).is_err());
    }
}
