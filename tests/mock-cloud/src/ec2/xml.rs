//! The shape of answers: elements with text or with children.

#![allow(clippy::needless_pass_by_value, reason = "texts of many kinds are written where an element is made")]

use quick_xml::escape::escape;

/// An element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Element {
    name: String,
    content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    Text(String),
    Children(Vec<Element>),
}

impl Element {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), content: Content::Children(Vec::new()) }
    }

    /// With one more child.
    pub(super) fn child(mut self, child: Self) -> Self {
        if let Content::Children(children) = &mut self.content {
            children.push(child);
        }
        self
    }

    /// With one more child that is text.
    pub(super) fn text(self, name: &str, text: impl std::fmt::Display) -> Self {
        self.child(Self { name: name.to_owned(), content: Content::Text(text.to_string()) })
    }

    /// The same where there is something to say.
    pub(super) fn maybe(self, name: &str, text: Option<impl std::fmt::Display>) -> Self {
        match text {
            Some(text) => self.text(name, text),
            None => self,
        }
    }

    /// With one more child that is a list: `<name><item>…</item>…</name>`.
    pub(super) fn list(self, name: &str, items: impl IntoIterator<Item = Self>) -> Self {
        self.child(items.into_iter().fold(Self::new(name), Self::child))
    }

    /// An item of a list.
    pub(super) fn item() -> Self {
        Self::new("item")
    }

    /// An item that is text alone.
    pub(super) fn text_item(text: impl std::fmt::Display) -> Self {
        Self { name: "item".to_owned(), content: Content::Text(text.to_string()) }
    }

    /// This element's children as the answer to an action.
    pub(super) fn into_answer(self, action: &str, request_id: &str) -> String {
        let Content::Children(children) = self.content else { return String::new() };
        let answer = Self::new(&format!("{action}Response")).text("requestId", request_id);
        children.into_iter().fold(answer, Self::child).to_document()
    }

    pub(super) fn to_document(&self) -> String {
        let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        self.write(&mut text, " xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"");
        text
    }

    fn write(&self, text: &mut String, attributes: &str) {
        text.push_str(&format!("<{}{attributes}>", self.name));
        match &self.content {
            Content::Text(content) => text.push_str(&escape(content.as_str())),
            Content::Children(children) => children.iter().for_each(|child| child.write(text, "")),
        }
        text.push_str(&format!("</{}>", self.name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped() {
        let text = Element::new("A").text("B", "<&>").list("C", [Element::text_item(1)]).to_document();
        assert!(text.ends_with("<A xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><B>&lt;&amp;&gt;</B><C><item>1</item></C></A>"));
    }
}
