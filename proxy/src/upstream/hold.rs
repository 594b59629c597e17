//! One packet for a request that is here already.
//!
//! Pingora writes and flushes the head of a request before it looks at its body: two packets, and
//! two times that the engine wakes up, for a body that stands beside its head in our buffer. Here
//! the kernel keeps the head back (`TCP_CORK`) until the look at the client's connection ends
//! ([`Look`], part of [`crate::listen::cork`]); what else is there to be sent by then goes with it.
//!
//! Pingora shows connections by the number of their descriptor only. So each keeps a second
//! descriptor here, from before it is connected until pingora says that it is closed.
//!
//! Invariant: nothing is held back past the end of the look that held it back; a connection that
//! pingora closes is closed at once.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pingora::upstreams::peer::{HttpPeer, Tracer, Tracing};
use rustix::net::sockopt::set_tcp_cork;
use tokio::net::TcpSocket;

/// The connections to engines that can be held back: one entry per open connection.
#[derive(Debug, Default)]
pub struct Holds {
    sockets: Mutex<HashMap<RawFd, Arc<OwnedFd>>>,
}

impl Holds {
    /// Makes a connection of `peer` known when it is made.
    pub fn follow(self: &Arc<Self>, peer: &mut HttpPeer) {
        let made = Arc::new(Made { holds: Arc::clone(self), socket: Mutex::default() });
        peer.options.tracer = Some(Tracer(Box::new(Watch(Arc::clone(&made)))));
        peer.options.upstream_tcp_sock_tweak_hook = Some(Arc::new(move |socket| {
            made.note(socket);
            Ok(())
        }));
    }

    /// Holds back what is written to the connection `fd` until the present look ends. Does nothing
    /// outside of a look.
    pub fn hold(&self, fd: RawFd) {
        let Some(socket) = self.sockets().get(&fd).map(Arc::clone) else { return };
        STATE.with_borrow_mut(|state| {
            if state.looking && set_tcp_cork(&*socket, true).is_ok() {
                state.held.push(socket);
            }
        });
    }

    fn sockets(&self) -> MutexGuard<'_, HashMap<RawFd, Arc<OwnedFd>>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection of one peer, while it is open.
#[derive(Debug)]
struct Made {
    holds: Arc<Holds>,
    socket: Mutex<Option<(RawFd, Arc<OwnedFd>)>>,
}

impl Made {
    fn note(&self, socket: &TcpSocket) {
        // Without a second descriptor the request goes in two packets.
        let Ok(second) = socket.as_fd().try_clone_to_owned() else { return };
        let (fd, second) = (socket.as_raw_fd(), Arc::new(second));
        self.holds.sockets().insert(fd, Arc::clone(&second));
        *self.socket.lock().unwrap_or_else(PoisonError::into_inner) = Some((fd, second));
    }

    fn forget(&self) {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((fd, second)) = socket else { return };
        let mut sockets = self.holds.sockets();
        // The number may be another connection's by now.
        if sockets.get(&fd).is_some_and(|known| Arc::ptr_eq(known, &second)) {
            sockets.remove(&fd);
        }
    }
}

impl Drop for Made {
    /// For those that were never connected.
    fn drop(&mut self) {
        self.forget();
    }
}

#[derive(Debug)]
struct Watch(Arc<Made>);

impl Tracing for Watch {
    fn on_connected(&self) {}

    fn on_disconnected(&self) {
        self.0.forget();
    }

    fn boxed_clone(&self) -> Box<dyn Tracing> {
        Box::new(Self(Arc::clone(&self.0)))
    }
}

#[derive(Default)]
struct State {
    looking: bool,
    held: Vec<Arc<OwnedFd>>,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::default();
}

/// A look at a client's connection: the time in which its task runs without waiting.
#[derive(Debug)]
pub struct Look(());

impl Look {
    /// Begins a look on this thread.
    pub fn begin() -> Self {
        STATE.with_borrow_mut(|state| state.looking = true);
        Self(())
    }
}

impl Drop for Look {
    /// Lets everything go that was held back.
    fn drop(&mut self) {
        STATE.with_borrow_mut(|state| {
            state.looking = false;
            for socket in state.held.drain(..) {
                // A connection that is broken has nothing to let go.
                let _ = set_tcp_cork(&*socket, false);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::time::Duration;

    #[test]
    fn what_is_written_in_a_look_arrives_in_one_piece_at_its_end() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_nodelay(true).unwrap();
        let (mut engine, _) = listener.accept().unwrap();
        engine.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let second = Arc::new(client.as_fd().try_clone_to_owned().unwrap());
        let holds = Holds::default();
        holds.sockets().insert(client.as_raw_fd(), second);
        let mut buffer = [0; 64];
        for number in 0..3 {
            let look = Look::begin();
            holds.hold(client.as_raw_fd());
            client.write_all(b"head ").unwrap();
            client.write_all(b"body").unwrap();
            assert!(engine.read(&mut buffer).is_err(), "too early, look {number}");
            drop(look);
            let n = engine.read(&mut buffer).unwrap();
            assert_eq!(&buffer[..n], b"head body");
        }
        holds.hold(client.as_raw_fd());
        client.write_all(b"outside of a look").unwrap();
        let n = engine.read(&mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"outside of a look");
    }
}
