//! A file system tree in memory: names and metadata; contents stay in a spool file.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Longest name of a directory entry, bytes.
pub const MAX_NAME: usize = 255;
/// Longest symbolic link target, bytes (PATH_MAX without its NUL).
pub const MAX_TARGET: usize = 4095;
/// Symbolic links followed in one path.
const MAX_FOLLOW: u32 = 40;
/// Deepest path that is accepted, in components.
const MAX_DEPTH: usize = 512;

/// Identifies a node of one tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(usize);

/// Metadata of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Meta {
    /// Permission bits with set-id and sticky, `0o7777`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since 1970.
    pub mtime: i64,
    /// Its nanoseconds.
    pub mtime_nsec: u32,
    /// Extended attributes by full name: `user.*`, `trusted.*`, `security.*` (`security.capability`),
    /// `system.posix_acl_access`, `system.posix_acl_default`.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Contents of a regular file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// Held here.
    Bytes(Arc<[u8]>),
    /// Bytes of the spool file.
    Spool {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
}

impl Data {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Data::Bytes(b) => b.len() as u64,
            Data::Spool { len, .. } => *len,
        }
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Directory: names in byte order.
    Dir(BTreeMap<Vec<u8>, NodeId>),
    /// Regular file.
    File(Data),
    /// Symbolic link with its target.
    Symlink(Vec<u8>),
    /// Character device.
    Char {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// Block device.
    Block {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// Named pipe.
    Fifo,
    /// Socket.
    Socket,
}

impl Kind {
    /// An empty directory.
    #[must_use]
    pub fn dir() -> Kind {
        Kind::Dir(BTreeMap::new())
    }
}

/// A node: metadata and kind. Hard links are several names for one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Metadata.
    pub meta: Meta,
    /// Kind.
    pub kind: Kind,
}

/// Why an operation on the tree is refused. The tree is unchanged then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path:?}: {what}")]
pub struct TreeError {
    path: String,
    what: &'static str,
}

/// The tree. Paths are bytes, relative to the root with or without leading `/` or `./`; `..` is refused. Symbolic links
/// among the *parents* of a path are followed inside the tree, the last component never is.
#[derive(Debug, Clone)]
pub struct Tree {
    nodes: Vec<Node>,
    max_nodes: usize,
}

impl Tree {
    /// A tree with a root directory of mode 0755, owned by root. At most `max_nodes` nodes are ever made in it, the
    /// removed ones included: a bound on memory against hostile layers.
    #[must_use]
    pub fn new(max_nodes: usize) -> Tree {
        let root = Node { meta: Meta { mode: 0o755, ..Meta::default() }, kind: Kind::dir() };
        Tree { nodes: vec![root], max_nodes }
    }

    /// The root directory.
    #[must_use]
    pub fn root(&self) -> NodeId {
        NodeId(0)
    }

    /// A node of this tree.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// The node at a path; `None` when there is none.
    #[must_use]
    pub fn lookup(&self, path: &[u8]) -> Option<NodeId> {
        let (parent, name) = self.resolve(path).ok()?;
        match name {
            None => Some(parent),
            Some(name) => self.children(parent)?.get(name).copied(),
        }
    }

    /// Follows symbolic links in the last component too; `None` for a dangling one.
    #[must_use]
    pub fn lookup_follow(&self, path: &[u8]) -> Option<NodeId> {
        // A trailing component makes every real one a parent; "." is dropped by the resolver afterwards.
        let mut budget = MAX_FOLLOW;
        self.walk(&components(path).ok()?, &mut budget).ok()
    }

    /// Adds a node. A directory over a directory keeps its children and takes the new metadata; anything else replaces
    /// what was there. Missing parents are made with mode 0755.
    ///
    /// # Errors
    /// [`TreeError`]: a path with `..` or a parent that is not a directory, a name or target too long, a full tree.
    pub fn insert(&mut self, path: &[u8], meta: Meta, kind: Kind) -> Result<NodeId, TreeError> {
        if let Kind::Symlink(target) = &kind
            && (target.is_empty() || target.len() > MAX_TARGET || target.contains(&0))
        {
            return Err(error(path, "symbolic link target is empty, too long or has a NUL"));
        }
        let (parent, name) = self.make_parents(path)?;
        let Some(name) = name else {
            return match kind {
                Kind::Dir(_) => {
                    self.nodes[parent.0].meta = meta;
                    Ok(parent)
                }
                _ => Err(error(path, "the root must be a directory")),
            };
        };
        let existing = self.children(parent).and_then(|c| c.get(&name)).copied();
        if let (Some(id), Kind::Dir(_)) = (existing, &kind)
            && matches!(self.node(id).kind, Kind::Dir(_))
        {
            self.nodes[id.0].meta = meta;
            return Ok(id);
        }
        let id = self.push(path, Node { meta, kind })?;
        self.link(parent, name, id);
        Ok(id)
    }

    /// Makes `path` another name of the node at `target`, replacing what was at `path`.
    ///
    /// # Errors
    /// [`TreeError`]: no such target, the target is a directory, or as [`Tree::insert`].
    pub fn hardlink(&mut self, path: &[u8], target: &[u8]) -> Result<(), TreeError> {
        let id = self.lookup(target).ok_or_else(|| error(target, "no such target of a hard link"))?;
        if matches!(self.node(id).kind, Kind::Dir(_)) {
            return Err(error(target, "a directory cannot have hard links"));
        }
        let (parent, name) = self.make_parents(path)?;
        let name = name.ok_or_else(|| error(path, "the root must be a directory"))?;
        self.link(parent, name, id);
        Ok(())
    }

    /// Takes the name at `path` away, with everything below it. Says whether there was one.
    pub fn remove(&mut self, path: &[u8]) -> bool {
        let Ok((parent, Some(name))) = self.resolve(path).map(|(p, n)| (p, n.map(<[u8]>::to_vec))) else {
            return false;
        };
        match &mut self.nodes[parent.0].kind {
            Kind::Dir(children) => children.remove(&name).is_some(),
            _ => false,
        }
    }

    /// Empties the directory at `path` (an opaque whiteout). Says whether there was a directory.
    pub fn clear_dir(&mut self, path: &[u8]) -> bool {
        let Some(id) = self.lookup(path) else {
            return false;
        };
        match &mut self.nodes[id.0].kind {
            Kind::Dir(children) => {
                children.clear();
                true
            }
            _ => false,
        }
    }

    /// Children of a directory; `None` when the node is not one.
    #[must_use]
    pub fn children(&self, id: NodeId) -> Option<&BTreeMap<Vec<u8>, NodeId>> {
        match &self.node(id).kind {
            Kind::Dir(c) => Some(c),
            _ => None,
        }
    }

    /// Nodes ever made.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is nothing but the root.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.children(self.root()).is_none_or(BTreeMap::is_empty)
    }

    fn link(&mut self, parent: NodeId, name: Vec<u8>, id: NodeId) {
        if let Kind::Dir(children) = &mut self.nodes[parent.0].kind {
            children.insert(name, id);
        }
    }

    fn push(&mut self, path: &[u8], node: Node) -> Result<NodeId, TreeError> {
        if self.nodes.len() >= self.max_nodes {
            return Err(error(path, "more files than are allowed"));
        }
        self.nodes.push(node);
        Ok(NodeId(self.nodes.len() - 1))
    }

    /// Parent directory and last name of a path; no name for the root itself.
    fn resolve<'p>(&self, path: &'p [u8]) -> Result<(NodeId, Option<&'p [u8]>), TreeError> {
        let parts = components(path)?;
        let Some((name, parents)) = parts.split_last() else {
            return Ok((self.root(), None));
        };
        let mut budget = MAX_FOLLOW;
        let parent = self.walk(parents, &mut budget).map_err(|what| error(path, what))?;
        Ok((parent, Some(name)))
    }

    fn make_parents(&mut self, path: &[u8]) -> Result<(NodeId, Option<Vec<u8>>), TreeError> {
        let parts = components(path)?;
        let Some((name, parents)) = parts.split_last() else {
            return Ok((self.root(), None));
        };
        let mut at = self.root();
        for (i, part) in parents.iter().enumerate() {
            if self.children(at).is_some_and(|c| !c.contains_key(*part)) {
                let meta = Meta { mode: 0o755, ..Meta::default() };
                let id = self.push(path, Node { meta, kind: Kind::dir() })?;
                self.link(at, part.to_vec(), id);
                at = id;
            } else {
                // From the root again: a relative link needs to know its parents.
                let mut budget = MAX_FOLLOW;
                at = self.walk(&parents[..=i], &mut budget).map_err(|what| error(path, what))?;
            }
        }
        if self.children(at).is_none() {
            return Err(error(path, "a parent is not a directory"));
        }
        Ok((at, Some(name.to_vec())))
    }

    /// Walks from the root, following symbolic links within the tree; `..` inside link targets stops at the root.
    fn walk(&self, parts: &[&[u8]], budget: &mut u32) -> Result<NodeId, &'static str> {
        let mut stack = vec![self.root()];
        // Components still to go, last first.
        let mut todo: Vec<&[u8]> = parts.iter().rev().copied().collect();
        while let Some(part) = todo.pop() {
            if part == b".." {
                stack.truncate(stack.len().saturating_sub(1).max(1));
                continue;
            }
            let at = *stack.last().unwrap_or(&NodeId(0));
            let children = self.children(at).ok_or("a parent is not a directory")?;
            let id = *children.get(part).ok_or("a parent does not exist")?;
            if let Kind::Symlink(target) = &self.node(id).kind {
                *budget = budget.checked_sub(1).ok_or("too many symbolic links")?;
                if target.first() == Some(&b'/') {
                    stack.truncate(1);
                }
                todo.extend(target.split(|b| *b == b'/').filter(|p| !p.is_empty() && *p != b".").rev());
            } else {
                stack.push(id);
            }
        }
        Ok(*stack.last().unwrap_or(&NodeId(0)))
    }
}

fn components(path: &[u8]) -> Result<Vec<&[u8]>, TreeError> {
    let parts: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|p| !p.is_empty() && *p != b".").collect();
    if parts.len() > MAX_DEPTH {
        return Err(error(path, "path is too deep"));
    }
    for p in &parts {
        if *p == b".." {
            return Err(error(path, "path has a component \"..\""));
        }
        if p.len() > MAX_NAME || p.contains(&0) {
            return Err(error(path, "a name is longer than 255 bytes or has a NUL"));
        }
    }
    Ok(parts)
}

fn error(path: &[u8], what: &'static str) -> TreeError {
    TreeError { path: String::from_utf8_lossy(&path[..path.len().min(200)]).into_owned(), what }
}
