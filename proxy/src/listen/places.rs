//! Who may have how many connections: one address cannot take all the places.
//!
//! Invariant: an entry exists only while its address has a connection, so that the table is no
//! larger than the number of connections.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedSemaphorePermit;

/// Counts connections by address. An IPv6 address stands for its /64, which is what one client has.
#[derive(Debug)]
pub struct Places {
    per_address_max: usize,
    taken: Mutex<HashMap<IpAddr, usize>>,
}

/// A connection's place among all, and among those of its address, until it is dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    address: IpAddr,
    _permit: OwnedSemaphorePermit,
}

impl Places {
    /// Nobody is here yet.
    pub fn new(per_address_max: usize) -> Arc<Self> {
        Arc::new(Self { per_address_max, taken: Mutex::default() })
    }

    /// A place for a connection from `address`; `None` when it has as many as it may have.
    pub fn take(self: &Arc<Self>, address: IpAddr, permit: OwnedSemaphorePermit) -> Option<Place> {
        let address = network(address);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(address).or_default();
        if *count >= self.per_address_max {
            return None;
        }
        *count += 1;
        Some(Place { places: Arc::clone(self), address, _permit: permit })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::Semaphore;

    #[test]
    fn one_address_cannot_take_all_places_and_gives_them_back() {
        let (places, permits) = (Places::new(2), Arc::new(Semaphore::new(9)));
        let take = |address: &str| {
            let permit = Arc::clone(&permits).try_acquire_owned().unwrap();
            places.take(address.parse().unwrap(), permit)
        };
        let held = [take("10.0.0.1"), take("::ffff:10.0.0.1")];
        assert!(take("10.0.0.1").is_none(), "the same address in another spelling");
        assert!(take("10.0.0.2").is_some());
        let six = [take("2001:db8::1"), take("2001:db8::2")];
        assert!(six.iter().all(Option::is_some) && take("2001:db8::3").is_none());
        drop((held, six));
        assert!(take("10.0.0.1").is_some());
        assert!(places.taken.lock().unwrap().is_empty());
        assert_eq!(permits.available_permits(), 9);
    }
}
