//! A bounded cache of validated nodes.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use blockdev::{AlignedBuf, BlockDevice, Completion, IoClass, Request};
use lru::LruCache;
use parking_lot::Mutex;
use uuid::Uuid;

use crate::error::{FsError, Result};
use crate::format::node::{Node, NodePtr};
use crate::types::NODE_SIZE;

/// Bytes a cached node is taken to cost: the node and its entry.
const NODE_COST: usize = NODE_SIZE + 256;

const MAX_SHARDS: usize = 16;

/// Nodes per shard below which fewer shards are used.
const MIN_SHARD_NODES: usize = 16;

/// What the cache did since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Nodes found in the cache.
    pub hits: u64,
    /// Nodes asked for and not found.
    pub misses: u64,
    /// Nodes read from the device. Threads that miss the same node share one read; nodes that were
    /// read ahead were never missed.
    pub reads: u64,
    /// Nodes in the cache now.
    pub nodes: u64,
}

/// Reads, validates and caches the nodes of one volume.
///
/// Nodes are found by their whole pointer, so that trees of different moments never mix even when
/// a block is reused. Methods that read block on the device; any thread may call them.
#[derive(Debug)]
pub struct NodeCache {
    device: Arc<dyn BlockDevice>,
    volume: Uuid,
    shards: Box<[Mutex<Shard>]>,
    hits: AtomicU64,
    misses: AtomicU64,
    reads: AtomicU64,
}

/// A read that several threads may wait for.
type Flight = Arc<OnceLock<Result<Arc<Node>>>>;

#[derive(Debug)]
struct Shard {
    nodes: LruCache<NodePtr, Arc<Node>>,
    flights: HashMap<NodePtr, Flight>,
}

impl NodeCache {
    /// A cache of at most `capacity` bytes (but at least one node) for the volume `volume` on
    /// `device`.
    pub fn new(device: Arc<dyn BlockDevice>, volume: Uuid, capacity: usize) -> Self {
        let nodes = (capacity / NODE_COST).max(1);
        let shards = (nodes / MIN_SHARD_NODES).clamp(1, MAX_SHARDS);
        let per_shard = NonZeroUsize::new(nodes / shards).unwrap_or(NonZeroUsize::MIN);
        let shard = || Mutex::new(Shard { nodes: LruCache::new(per_shard), flights: HashMap::new() });
        Self {
            device,
            volume,
            shards: (0..shards).map(|_| shard()).collect(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            reads: AtomicU64::new(0),
        }
    }

    /// The volume whose nodes these are.
    pub fn volume(&self) -> Uuid {
        self.volume
    }

    /// Counters. Never blocks for long.
    pub fn stats(&self) -> CacheStats {
        CacheStats {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            reads: self.reads.load(Ordering::Relaxed),
            nodes: self.shards.iter().map(|s| s.lock().nodes.len() as u64).sum(),
        }
    }

    /// Drops a node that will not be asked for again, such as one whose blocks are being reused.
    /// Only a hint: a node found by its pointer is right for that pointer for ever.
    pub fn forget(&self, ptr: NodePtr) {
        self.shard(&ptr).lock().nodes.pop(&ptr);
    }

    /// The node at `ptr`, from the cache or the device. Threads that miss the same node share one
    /// read. Errors are not cached.
    pub(super) fn get(&self, ptr: NodePtr, class: IoClass) -> Result<Arc<Node>> {
        let shard = self.shard(&ptr);
        let flight = {
            let mut shard = shard.lock();
            if let Some(node) = shard.nodes.get(&ptr) {
                let node = node.clone();
                drop(shard);
                self.hits.fetch_add(1, Ordering::Relaxed);
                return Ok(node);
            }
            shard.flights.entry(ptr).or_default().clone()
        };
        self.misses.fetch_add(1, Ordering::Relaxed);
        let result = flight.get_or_init(|| self.read(ptr, class)).clone();
        let mut shard = shard.lock();
        // Only the first to come back does this: another flight may have begun since.
        if shard.flights.get(&ptr).is_some_and(|f| Arc::ptr_eq(f, &flight)) {
            shard.flights.remove(&ptr);
            if let Ok(node) = &result {
                shard.nodes.push(ptr, node.clone());
            }
        }
        result
    }

    /// Nodes read ahead are not likely to be dropped before they are used.
    pub(super) fn is_roomy(&self) -> bool {
        self.shards.len() == MAX_SHARDS
    }

    /// Whether `ptr` is in the cache; does not count as a use.
    pub(super) fn contains(&self, ptr: &NodePtr) -> bool {
        self.shard(ptr).lock().nodes.contains(ptr)
    }

    /// Caches a node that is being written or was just read.
    pub(super) fn insert(&self, node: Arc<Node>) {
        let ptr = node.ptr();
        self.shard(&ptr).lock().nodes.push(ptr, node);
    }

    /// Reads all of `ptrs` at the same time, past the cache. One result each, in order.
    pub(super) fn read_many(&self, ptrs: &[NodePtr], class: IoClass) -> Vec<Result<Arc<Node>>> {
        let size = self.device.capabilities().size_bytes;
        let checked: Vec<Result<()>> = ptrs.iter().map(|ptr| within(ptr, size)).collect();
        let good = ptrs.iter().zip(&checked).filter(|(_, c)| c.is_ok()).map(|(ptr, _)| ptr);
        let requests =
            good.map(|ptr| Request::read(ptr.addr.offset(), vec![AlignedBuf::zeroed(NODE_SIZE)], class));
        let mut pending = self.device.submit(requests.collect()).into_iter();
        let finish = |(ptr, checked): (&NodePtr, Result<()>)| {
            checked?;
            let pending = pending.next().expect("submit returns one pending entry per request");
            self.complete(*ptr, pending.wait())
        };
        ptrs.iter().zip(checked).map(finish).collect()
    }

    fn read(&self, ptr: NodePtr, class: IoClass) -> Result<Arc<Node>> {
        within(&ptr, self.device.capabilities().size_bytes)?;
        let request = Request::read(ptr.addr.offset(), vec![AlignedBuf::zeroed(NODE_SIZE)], class);
        self.complete(ptr, self.device.execute(request))
    }

    fn complete(&self, ptr: NodePtr, completion: Completion) -> Result<Arc<Node>> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        completion.result?;
        let buf = completion.bufs.into_iter().next().unwrap_or_else(|| AlignedBuf::zeroed(0));
        Ok(Arc::new(Node::open(buf, ptr, self.volume)?))
    }

    fn shard(&self, ptr: &NodePtr) -> &Mutex<Shard> {
        // Fibonacci hashing: node addresses are multiples of small powers of two.
        let hash = ptr.addr.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        &self.shards[hash as usize % self.shards.len()]
    }
}

/// The node lies on a device of `size` bytes.
fn within(ptr: &NodePtr, size: u64) -> Result<()> {
    if ptr.plausible() && ptr.addr.offset() + NODE_SIZE as u64 <= size {
        return Ok(());
    }
    Err(FsError::corrupt("tree node", ptr.addr, "it lies beyond the end of the device"))
}
