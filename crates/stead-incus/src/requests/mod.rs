//! Every request Stead makes, as functions from what is wanted to a [`Request`](crate::Request). Pure: tests assert
//! method, path, body and the features a request needs.

pub mod certificates;
pub mod cluster;
pub mod exec;
pub mod files;
pub mod images;
pub mod instances;
pub mod migration;
pub mod networks;
pub mod operations;
pub mod profiles;
pub mod projects;
pub mod server;
pub mod storage;
pub mod warnings;

use crate::{Feature, Request};

/// Which projects a list is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope<'a> {
    /// One.
    Project(&'a str),
    /// Every one the client may see.
    AllProjects,
}

impl Scope<'_> {
    fn of(self, request: Request, all: Feature) -> Request {
        match self {
            Self::Project(project) => request.query("project", project),
            Self::AllProjects => request.query("all-projects", "true").needs(all),
        }
    }
}

/// Asserts on a request in one line.
#[cfg(test)]
pub(crate) fn shown(r: &Request) -> String {
    match r.body() {
        crate::Body::Json(v) => format!("{r} {v}"),
        crate::Body::None => r.to_string(),
        _ => format!("{r} (bytes)"),
    }
}
