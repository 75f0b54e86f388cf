//! Refuses requests that another website makes in a browser of this machine.
//!
//! Three checks: `Host` must be 127.0.0.1 or localhost with the port (against DNS rebinding); `Origin` and
//! `Sec-Fetch-Site`, where present, must name the console's own page (against cross-site requests); a request that
//! changes something must have a JSON body (a cross-site form cannot send one without a preflight). No response has a
//! CORS header. Programs on this machine may call the console.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::refuse;

pub(super) async fn admit(State(port): State<u16>, request: Request, next: Next) -> Response {
    let mut response = match check(port, &request) {
        Ok(()) => next.run(request).await,
        Err((status, detail)) => refuse(status, detail).into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn check(port: u16, request: &Request) -> Result<(), (StatusCode, &'static str)> {
    let headers = request.headers();
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let hosts = [format!("127.0.0.1:{port}"), format!("localhost:{port}")];
    let host = text("host").unwrap_or_default();
    if !hosts.iter().any(|known| known == host) {
        return Err((StatusCode::MISDIRECTED_REQUEST, "Host must be 127.0.0.1 or localhost, with the port"));
    }
    let from_elsewhere = text("origin").is_some_and(|origin| origin != format!("http://{host}"))
        || text("sec-fetch-site").is_some_and(|site| !["same-origin", "none"].contains(&site))
            && request.uri().path() != "/";
    if from_elsewhere {
        return Err((StatusCode::FORBIDDEN, "only the console's own page may call it"));
    }
    if request.method() != Method::GET && !is_json(headers) {
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "Content-Type must be application/json"));
    }
    Ok(())
}

fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    content_type
        .is_some_and(|value| value.split(';').next().is_some_and(|kind| kind.trim() == "application/json"))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn status(method: &str, path: &str, headers: &[(&str, &str)]) -> Option<u16> {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        check(8088, &request.body(Body::empty()).ok()?).err().map(|(status, _)| status.as_u16())
    }

    const HOST: (&str, &str) = ("host", "127.0.0.1:8088");
    const JSON: (&str, &str) = ("content-type", "application/json; charset=utf-8");

    #[test]
    fn requests_of_the_console_page_and_of_local_programs_are_accepted() {
        let own = ("origin", "http://127.0.0.1:8088");
        assert_eq!(status("GET", "/", &[HOST, ("sec-fetch-site", "none")]), None);
        assert_eq!(status("GET", "/", &[HOST, ("sec-fetch-site", "cross-site")]), None, "a link to it");
        assert_eq!(
            status("PUT", "/parts/kafka", &[HOST, own, JSON, ("sec-fetch-site", "same-origin")]),
            None
        );
        assert_eq!(status("PUT", "/parts/kafka", &[("host", "localhost:8088"), JSON]), None);
    }

    #[test]
    fn requests_of_other_websites_are_refused() {
        for host in ["evil.example:8088", "127.0.0.1", "127.0.0.1:80", ""] {
            assert_eq!(status("GET", "/", &[("host", host)]), Some(421), "{host}");
        }
        for origin in ["http://evil.example", "null", "http://127.0.0.1:8080", "http://localhost:8088"] {
            assert_eq!(
                status("PUT", "/parts/kafka", &[HOST, JSON, ("origin", origin)]),
                Some(403),
                "{origin}"
            );
        }
        for site in ["cross-site", "same-site"] {
            assert_eq!(status("GET", "/events", &[HOST, ("sec-fetch-site", site)]), Some(403), "{site}");
        }
        for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"] {
            assert_eq!(status("POST", "/payments", &[HOST, ("content-type", kind)]), Some(415), "{kind}");
        }
        assert_eq!(status("POST", "/payments", &[HOST]), Some(415));
    }
}
