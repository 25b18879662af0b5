//! `poll`, for OpenNebula 5.8 and 5.10. It only reads, so it locks nothing.

use super::{Call, Parsed, Running, Words, Work};
use crate::{ids::InstanceName, monitor};

/// `poll` of one instance.
#[derive(Debug)]
struct Poll {
    name: InstanceName,
}

/// Reads the arguments of [`Poll`].
pub(super) fn parse(words: &Words<'_>) -> Parsed {
    Ok(Box::new(Poll { name: words.instance(0)? }))
}

impl Work for Poll {
    fn run<'c, 'l: 'c>(self: Box<Self>, mut call: Call<'c, 'l>) -> Running<'c> {
        Box::pin(async move {
            let rc = call.configuration()?;
            Ok(monitor::poll_one(call.context, &rc, &self.name).await?)
        })
    }
}

/// `poll` of all instances of the host.
#[derive(Debug)]
struct PollAll {
    /// `-t`: with templates to import them by.
    templates: bool,
}

/// What `poll` means without an instance.
pub(super) fn all(templates: bool) -> Box<dyn Work> {
    Box::new(PollAll { templates })
}

impl Work for PollAll {
    fn run<'c, 'l: 'c>(self: Box<Self>, mut call: Call<'c, 'l>) -> Running<'c> {
        Box::pin(async move {
            let rc = call.configuration()?;
            Ok(monitor::poll_all(call.context, &rc, self.templates, call.log).await?)
        })
    }
}
