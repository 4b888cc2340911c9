package topic

// Index finds, for a topic, the values of all patterns that match it. It is a trie over tokens: a lookup follows only the
// patterns that begin as the topic does, however many are held. The zero Index is empty and ready. It is not safe for
// concurrent use.
type Index[V any] struct {
	root node[V]
	size int
}

// node is a place in the trie: the tokens on the way to it are a beginning of patterns.
type node[V any] struct {
	children map[string]*node[V] // by literal token
	one      *node[V]            // behind *
	exact    *V                  // the pattern that ends here
	tail     *V                  // the pattern that goes on with >
}

func (n *node[V]) empty() bool {
	return len(n.children) == 0 && n.one == nil && n.exact == nil && n.tail == nil
}

// Len is the number of patterns held.
func (x *Index[V]) Len() int { return x.size }

// Set holds v under p, in place of what was there.
func (x *Index[V]) Set(p Pattern, v V) {
	n := &x.root
	for rest, more := p.s, true; more; {
		var token string
		token, more = cut(&rest)
		if token == tail {
			x.put(&n.tail, v)
			return
		}
		n = n.step(token)
	}
	x.put(&n.exact, v)
}

func (x *Index[V]) put(slot **V, v V) {
	if *slot == nil {
		x.size++
	}
	*slot = &v
}

// step returns the node behind a token, making it if it is missing.
func (n *node[V]) step(token string) *node[V] {
	if token == one {
		if n.one == nil {
			n.one = &node[V]{}
		}
		return n.one
	}
	next := n.children[token]
	if next == nil {
		if n.children == nil {
			n.children = map[string]*node[V]{}
		}
		next = &node[V]{}
		n.children[token] = next
	}
	return next
}

// Delete removes p, if it is held, and the nodes that only led to it.
func (x *Index[V]) Delete(p Pattern) {
	if x.remove(&x.root, p.s, true) {
		x.size--
	}
}

func (x *Index[V]) remove(n *node[V], rest string, more bool) (removed bool) {
	if !more {
		removed, n.exact = n.exact != nil, nil
		return removed
	}
	token, more := cut(&rest)
	switch token {
	case tail:
		removed, n.tail = n.tail != nil, nil
	case one:
		if n.one != nil {
			removed = x.remove(n.one, rest, more)
			if n.one.empty() {
				n.one = nil
			}
		}
	default:
		if next := n.children[token]; next != nil {
			removed = x.remove(next, rest, more)
			if next.empty() {
				delete(n.children, token)
			}
		}
	}
	return removed
}

// Match calls yield with the value of every pattern that matches n, in no particular order. It does not allocate, and
// yield must not change the index.
func (x *Index[V]) Match(n Name, yield func(V)) {
	if n.s != "" {
		x.root.match(n.s, true, yield)
	}
}

func (n *node[V]) match(rest string, more bool, yield func(V)) {
	if !more {
		if n.exact != nil {
			yield(*n.exact)
		}
		return
	}
	if n.tail != nil {
		yield(*n.tail)
	}
	token, more := cut(&rest)
	if next := n.children[token]; next != nil {
		next.match(rest, more, yield)
	}
	if n.one != nil {
		n.one.match(rest, more, yield)
	}
}
