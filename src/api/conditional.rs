//! Conditional requests (RFC 9110, section 13): `ETag`, `If-None-Match`, `If-Match`.
//!
//! The entity tag of an order is its version: `"1"` when placed, incremented by each real change.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::header::{IF_MATCH, IF_NONE_MATCH};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::problem::Problem;
use crate::orders::Versions;

pub(super) fn etag(version: i32) -> HeaderValue {
    HeaderValue::try_from(format!("\"{version}\"")).unwrap_or(HeaderValue::from_static("\"\""))
}

/// The versions that the client has stored (13.1.2; weak comparison), or the error of the header.
pub(super) struct IfNoneMatch(Result<Option<Versions>, Problem>);

impl IfNoneMatch {
    /// Whether the client has this version.
    pub(super) fn has(self, version: i32) -> Result<bool, Problem> {
        Ok(self.0?.is_some_and(|versions| versions.contain(version)))
    }
}

impl<S: Sync> FromRequestParts<S> for IfNoneMatch {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(read(&parts.headers, &IF_NONE_MATCH, Comparison::Weak)))
    }
}

/// The versions that the request applies to (13.1.1; strong comparison). Without the header: any.
pub(super) fn only_if(headers: &HeaderMap) -> Result<Versions, Problem> {
    Ok(read(headers, &IF_MATCH, Comparison::Strong)?.unwrap_or(Versions::Any))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Strong,
    Weak,
}

fn read(
    headers: &HeaderMap,
    name: &'static HeaderName,
    comparison: Comparison,
) -> Result<Option<Versions>, Problem> {
    let mut versions = None;
    for value in headers.get_all(name) {
        let tags = value.to_str().ok().and_then(|text| parse(text, comparison));
        let tags =
            tags.ok_or_else(|| Problem::invalid(name.as_str(), "must be * or a list of entity tags"))?;
        versions = Some(match (versions, tags) {
            (Some(Versions::Any), _) | (_, Versions::Any) => Versions::Any,
            (None, tags) => tags,
            (Some(Versions::OneOf(mut all)), Versions::OneOf(more)) => {
                all.extend(more);
                Versions::OneOf(all)
            }
        });
    }
    Ok(versions)
}

/// Parses `*`, or a list of tags (8.8.3). A foreign tag matches no version. An empty list is invalid in `If-Match`
/// (issue 8), and matches no version in `If-None-Match`.
fn parse(text: &str, comparison: Comparison) -> Option<Versions> {
    const BETWEEN: [char; 3] = [',', ' ', '\t'];
    if text.trim() == "*" {
        return Some(Versions::Any);
    }
    let (mut versions, mut rest) = (Vec::new(), text.trim_matches(BETWEEN));
    if rest.is_empty() && comparison == Comparison::Strong {
        return None;
    }
    while !rest.is_empty() {
        let weak = rest.strip_prefix("W/");
        let (opaque, after) = weak.unwrap_or(rest).strip_prefix('"')?.split_once('"')?;
        rest = after.trim_start_matches(BETWEEN);
        let separated = rest.is_empty() || after[..after.len() - rest.len()].contains(',');
        if !separated || !opaque.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        if weak.is_none() || comparison == Comparison::Weak {
            versions.extend(version(opaque));
        }
    }
    Some(Versions::OneOf(versions))
}

/// The version of a tag. Tags are compared exactly, so `"01"` has none.
fn version(opaque: &str) -> Option<i32> {
    opaque.parse().ok().filter(|version: &i32| version.to_string() == opaque)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_tags_names_the_versions_in_it() {
        let both = Some(Versions::OneOf(vec![1, 3]));
        assert_eq!(parse("\"1\", \"3\"", Comparison::Strong), both);
        assert_eq!(parse("W/\"1\",\"3\"", Comparison::Weak), both);
        assert_eq!(parse("*", Comparison::Strong), Some(Versions::Any));
    }

    #[test]
    fn a_weak_or_foreign_tag_matches_nothing_strongly() {
        let nothing = Some(Versions::OneOf(Vec::new()));
        assert_eq!(parse("W/\"1\"", Comparison::Strong), nothing);
        for foreign in ["\"abc\"", "\"01\"", "\"+1\"", "\"1,1\"", "\"\""] {
            assert_eq!(parse(foreign, Comparison::Strong), nothing, "{foreign}");
        }
    }

    #[test]
    fn an_invalid_tag_is_refused() {
        for bad in ["1", "\"1", "'1'", "W/1", "\"", "*, \"1\"", "\"1\" \"2\"", "\"1\"2", "\"1 2\""] {
            assert_eq!(parse(bad, Comparison::Weak), None, "{bad}");
        }
        for empty in ["", " , "] {
            assert_eq!(parse(empty, Comparison::Strong), None, "{empty}");
            assert_eq!(parse(empty, Comparison::Weak), Some(Versions::OneOf(Vec::new())), "{empty}");
        }
    }
}
