//! XML elements and their texts, as OpenNebula writes them: one level of elements, texts in CDATA or bare.

use super::DocumentError;
use crate::ids::IdError;
use roxmltree::{Document, Node, ParsingOptions};
use std::str::FromStr;

/// More nodes than any VM's document has: one of 8 MiB with a hundred disks, NICs and rules has 20 000.
const MAX_NODES: u32 = 200_000;

/// Parses a document. A DTD, and with it any entity definition, is refused.
pub(super) fn parse(text: &str) -> Result<Document<'_>, DocumentError> {
    let options = ParsingOptions { allow_dtd: false, nodes_limit: MAX_NODES, ..Default::default() };
    Document::parse_with_options(text, options).map_err(DocumentError::Xml)
}

/// An element or its absence: an absent element has no children.
#[derive(Clone, Copy)]
pub(super) struct Element<'a>(pub Option<Node<'a, 'a>>);

impl<'a> Element<'a> {
    /// The first child with this name.
    pub fn child(self, name: &str) -> Self {
        Self(self.children(name).next().and_then(|c| c.0))
    }
    /// All children with this name.
    pub fn children<'n>(self, name: &'n str) -> impl Iterator<Item = Self> + use<'a, 'n> {
        self.0
            .into_iter()
            .flat_map(|n| n.children())
            .filter(move |n| n.has_tag_name(name))
            .map(|n| Self(Some(n)))
    }
    /// The trimmed text of the child with this name; `None` when it is missing or empty.
    pub fn text(self, name: &str) -> Option<String> {
        let node = self.child(name).0?;
        let text: String = node.children().filter(|c| c.is_text()).filter_map(|c| c.text()).collect();
        let text = text.trim();
        (!text.is_empty()).then(|| text.to_owned())
    }
    /// The child's text as a `T`.
    pub fn value<T: FromStr<Err = IdError>>(self, name: &str) -> Result<Option<T>, DocumentError> {
        Ok(self.text(name).map(|t| t.parse()).transpose()?)
    }
    /// The child's text as a whole number.
    pub fn number(self, name: &'static str) -> Result<Option<u64>, DocumentError> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let number = text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        number.map(Some).ok_or_else(|| IdError::new(name, &text, "a whole number").into())
    }
    /// Whether the child is true: OpenNebula writes YES, people write yes and true.
    pub fn is_yes(self, name: &str) -> bool {
        self.text(name).is_some_and(|t| ["yes", "true", "1"].iter().any(|yes| t.eq_ignore_ascii_case(yes)))
    }
}
