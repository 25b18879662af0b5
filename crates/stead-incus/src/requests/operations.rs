//! Background work of the server.

use super::Scope;
use crate::{Feature, Request, request::encode};
use std::time::Duration;

/// Operations of every member, by status: `{"running": […], "success": […]}`. Ended ones are listed for five seconds.
pub fn list(scope: Scope<'_>) -> Request {
    scope.of(Request::get("/1.0/operations?recursion=1"), Feature::OperationsAllProjects)
}
/// Answers when the operation has ended, or after `timeout` with it still running. The connection is given 5 s more
/// than the server, so that the server's answer wins.
pub fn wait(path: &str, timeout: Duration) -> Request {
    let seconds = timeout.as_secs().max(1);
    Request::get(format!("{}/wait", bare(path)))
        .query("timeout", &seconds.to_string())
        .within(Duration::from_secs(seconds + 5))
}
/// How it is.
pub fn get(path: &str) -> Request {
    Request::get(bare(path))
}
/// Cancels it, if it can be.
pub fn cancel(path: &str) -> Request {
    Request::delete(bare(path))
}
/// One of its websockets.
pub fn websocket(path: &str, secret: &str) -> Request {
    Request::get(format!("{}/websocket", bare(path))).query("secret", secret)
}
/// The path of an operation known by its UUID.
pub fn path(id: &str) -> String {
    format!("/1.0/operations/{}", encode(id))
}

/// Operations are named with a query at times (`?project=p`), which does not matter to find them.
fn bare(path: &str) -> &str {
    path.split_once('?').map_or(path, |(p, _)| p)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requests::shown;

    #[test]
    fn requests() {
        let w = wait("/1.0/operations/u?project=p", Duration::from_secs(30));
        assert_eq!(shown(&w), "GET /1.0/operations/u/wait?timeout=30");
        assert_eq!(w.timeout(), Duration::from_secs(35));
        assert_eq!(shown(&cancel("/1.0/operations/u")), "DELETE /1.0/operations/u");
        assert_eq!(shown(&websocket("/1.0/operations/u", "s")), "GET /1.0/operations/u/websocket?secret=s");
        assert_eq!(shown(&list(Scope::Project("p"))), "GET /1.0/operations?recursion=1&project=p");
    }
}
