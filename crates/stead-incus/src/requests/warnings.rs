//! Warnings of the server.

use crate::{Feature, Request, request::encode};
use serde_json::json;

/// All warnings.
pub fn list() -> Request {
    Request::get("/1.0/warnings?recursion=1").needs(Feature::Warnings)
}
/// One warning.
pub fn get(uuid: &str) -> Request {
    Request::get(path(uuid)).needs(Feature::Warnings)
}
/// Marks a warning as seen.
pub fn acknowledge(uuid: &str) -> Request {
    Request::put_untagged(path(uuid), &json!({ "status": "acknowledged" })).needs(Feature::Warnings)
}
/// Deletes a warning.
pub fn delete(uuid: &str) -> Request {
    Request::delete(path(uuid)).needs(Feature::Warnings)
}

fn path(uuid: &str) -> String {
    format!("/1.0/warnings/{}", encode(uuid))
}
