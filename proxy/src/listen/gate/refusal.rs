//! Why the door refuses a request: one reason per rule, and what the client is told.
//!
//! Invariant: the list is closed and every reason has one status, one code and one message, so that
//! the metrics' labels are bounded and no answer holds text of the client's.

use std::fmt;

/// A rule that a request broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The first line is not `METHOD target HTTP/x.y`.
    RequestLine,
    /// The target holds a character that does not belong there, or is no origin or absolute form.
    Target,
    /// A line ends in anything but CR LF, or a CR or LF stands alone.
    LineEnd,
    /// A control character in the head.
    Control,
    /// A field name is empty, holds what no name may, or white space before its colon.
    FieldName,
    /// A field continues on the next line.
    Folded,
    /// `Host` is missing, repeated, no host, or another than the target's.
    Host,
    /// `Content-Length` is not one plain decimal number.
    Length,
    /// `Transfer-Encoding` is repeated, disguised, or came with HTTP/1.0.
    Coding,
    /// Both `Content-Length` and `Transfer-Encoding`.
    LengthAndCoding,
    /// A field that can only have one value is repeated.
    Repeated,
    /// A field with underscores that reads like one of the proxy's or of the framing.
    Imitation,
    /// `Connection` would remove a field that is not the client's to remove.
    Nomination,
    /// An upgrade to websocket that is not a plain GET without a body.
    Upgrade,
    /// A chunk size is not one to sixteen hexadecimal digits.
    ChunkSize,
    /// A chunk or its size line does not end in CR LF.
    ChunkEnd,
    /// Chunk extensions are too long or hold control characters.
    ChunkExtension,
    /// A trailer is malformed, too long, or one that may not be a trailer.
    Trailer,
    /// `Expect` is something else than `100-continue`.
    Expectation,
    /// The head did not arrive in time.
    HeadSlow,
    /// The body arrived too slowly.
    BodySlow,
    /// The request line is too long.
    TargetLong,
    /// The head is too long.
    HeadLarge,
    /// Too many fields.
    FieldsMany,
    /// A method that is not passed on: CONNECT, TRACE.
    Method,
    /// A transfer coding other than `chunked`.
    CodingUnknown,
    /// Neither HTTP/1.0 nor HTTP/1.1.
    Version,
    /// The client's address has too many connections open.
    AddressFull,
    /// An HTTP/2 client sends more control frames than any use needs.
    FrameFlood,
}

use Refusal as R;

impl Refusal {
    /// All of them, in the order in which they are counted.
    pub const ALL: [Self; 29] = [
        R::RequestLine,
        R::Target,
        R::LineEnd,
        R::Control,
        R::FieldName,
        R::Folded,
        R::Host,
        R::Length,
        R::Coding,
        R::LengthAndCoding,
        R::Repeated,
        R::Imitation,
        R::Nomination,
        R::Upgrade,
        R::ChunkSize,
        R::ChunkEnd,
        R::ChunkExtension,
        R::Trailer,
        R::Expectation,
        R::HeadSlow,
        R::BodySlow,
        R::TargetLong,
        R::HeadLarge,
        R::FieldsMany,
        R::Method,
        R::CodingUnknown,
        R::Version,
        R::AddressFull,
        R::FrameFlood,
    ];

    /// The label in metrics, and what the client is told.
    const fn words(self) -> (&'static str, &'static str) {
        match self {
            R::RequestLine => ("request_line", "The first line is not `METHOD /path HTTP/1.1`."),
            R::Target => {
                ("target", "The request target is not a path, or holds characters it may not.")
            }
            R::LineEnd => ("line_end", "A line of the request head does not end in CR LF."),
            R::Control => ("control", "The request head holds a control character."),
            R::FieldName => {
                ("field_name", "A header name is empty or holds a character it may not.")
            }
            R::Folded => ("folded", "A header is continued on the next line, which is obsolete."),
            R::Host => {
                ("host", "Exactly one valid Host header is needed, the same as the target's.")
            }
            R::Length => ("content_length", "Content-Length has to be one plain decimal number."),
            R::Coding => {
                ("transfer_encoding", "Transfer-Encoding can only be `chunked`, once, in HTTP/1.1.")
            }
            R::LengthAndCoding => (
                "length_and_encoding",
                "Content-Length and Transfer-Encoding exclude each other. Send one of them.",
            ),
            R::Repeated => ("repeated", "A header that can only have one value is repeated."),
            R::Imitation => ("imitation", "A header with underscores imitates a protected one."),
            R::Nomination => ("nomination", "The Connection header names a protected header."),
            R::Upgrade => ("upgrade", "A websocket begins with a GET without a body."),
            R::ChunkSize => ("chunk_size", "A chunk size is not a plain hexadecimal number."),
            R::ChunkEnd => ("chunk_end", "A chunk does not end in CR LF."),
            R::ChunkExtension => ("chunk_extension", "Chunk extensions are too long or malformed."),
            R::Trailer => ("trailer", "A trailer is malformed, too long or not allowed."),
            R::Expectation => {
                ("expectation", "The only expectation that can be met is 100-continue.")
            }
            R::HeadSlow => ("head_slow", "The request head did not arrive in time. Send it again."),
            R::BodySlow => ("body_slow", "The request body arrived too slowly. Send it again."),
            R::TargetLong => ("target_long", "The request line is too long."),
            R::HeadLarge => ("head_large", "The request headers are too large."),
            R::FieldsMany => ("fields_many", "The request has too many headers."),
            R::Method => ("method", "This method is not passed on."),
            R::CodingUnknown => ("coding_unknown", "The only transfer coding is `chunked`."),
            R::Version => ("version", "Only HTTP/1.0, HTTP/1.1 and HTTP/2 are spoken here."),
            R::AddressFull => ("address_full", "Too many connections from this address."),
            R::FrameFlood => ("frame_flood", "Too many HTTP/2 control frames."),
        }
    }

    /// The label in metrics.
    pub const fn as_str(self) -> &'static str {
        self.words().0
    }

    /// For people: which rule was broken.
    pub const fn message(self) -> &'static str {
        self.words().1
    }

    /// HTTP status and `error.code`.
    pub const fn status(self) -> (u16, &'static str) {
        match self {
            R::Expectation => (417, "expectation_failed"),
            R::HeadSlow | R::BodySlow => (408, "request_timeout"),
            R::TargetLong => (414, "target_too_long"),
            R::HeadLarge | R::FieldsMany => (431, "headers_too_large"),
            R::Method | R::CodingUnknown => (501, "not_implemented"),
            R::Version => (505, "version_not_supported"),
            R::AddressFull | R::FrameFlood => (429, "too_many_connections"),
            _ => (400, "malformed_request"),
        }
    }

    /// Its place in [`Self::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::Refusal;

    #[test]
    fn the_list_is_in_order_and_every_label_is_its_own() {
        for (at, refusal) in Refusal::ALL.iter().enumerate() {
            assert_eq!(refusal.index(), at);
        }
        let mut labels: Vec<_> = Refusal::ALL.iter().map(|r| r.as_str()).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), Refusal::ALL.len());
    }
}
