//! Lines of JSON over a Unix socket, with file descriptors beside them.
//!
//! Invariant: a line and its descriptors are bounded, and every wait has a deadline, whatever the
//! other side does.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Longest line, bytes.
const LINE_BYTES_MAX: usize = 4_096;
/// Most descriptors with one line.
pub(super) const FDS_MAX: usize = 16;

/// Sends one line, and descriptors with its first byte.
pub(super) fn send(link: &UnixStream, line: &str, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let text = format!("{line}\n");
    if text.len() > LINE_BYTES_MAX || fds.len() > FDS_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut space = [0u8; rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = sendmsg(link, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
    // A line is far smaller than a socket buffer; the rest, if any, follows without descriptors.
    io::Write::write_all(&mut &*link, &text.as_bytes()[sent..])
}

/// Receives one line and what came with it. Errors: the other side is gone, is too slow, or does not
/// end its line.
pub(super) fn receive(link: &UnixStream) -> io::Result<(String, Vec<OwnedFd>)> {
    let (mut text, mut fds) = (Vec::new(), Vec::new());
    while text.last() != Some(&b'\n') {
        let mut part = [0u8; LINE_BYTES_MAX];
        let mut space = [0u8; rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut part)];
        let got = recvmsg(link, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        text.extend_from_slice(&part[..got]);
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if text.len() > LINE_BYTES_MAX || fds.len() > FDS_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    let line = String::from_utf8(text).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok((line.trim_end().to_owned(), fds))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_listener_arrives_with_its_line_and_still_accepts() {
        let (a, b) = UnixStream::pair().unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let early = TcpStream::connect(address).unwrap();
        send(&a, "here", &[tcp.as_fd()]).unwrap();
        drop(tcp);
        let (line, mut fds) = receive(&b).unwrap();
        assert_eq!((line.as_str(), fds.len()), ("here", 1));
        let inherited = TcpListener::from(fds.remove(0));
        let (stream, _) = inherited.accept().unwrap();
        assert_eq!(stream.peer_addr().unwrap(), early.local_addr().unwrap());
    }

    #[test]
    fn endless_and_ended_lines_are_errors() {
        let (mut a, b) = UnixStream::pair().unwrap();
        b.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        a.write_all(&[b'x'; LINE_BYTES_MAX + 1]).unwrap();
        assert_eq!(receive(&b).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(b"half").unwrap();
        drop(a);
        assert_eq!(receive(&b).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(send(&b, &"x".repeat(LINE_BYTES_MAX), &[]).is_err());
    }
}
