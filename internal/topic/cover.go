package topic

// Cover reports whether every name that p matches is matched by one of the patterns in by.
//
// What a pattern matches has one shape for each number of tokens. Of a shape, the name whose wildcards are filled with tokens that
// occur nowhere is the hardest to match: only wildcards match such a token, and what matches it there matches all others too. So p
// is covered if for each number of tokens it can have, one pattern matches that name.
func (p Pattern) Cover(by []Pattern) bool {
	if p.s == "" {
		return true
	}
	least, open := p.tokens()
	most := least
	if open {
		// Each further token takes a dot and a byte at least.
		most = min(MaxTokens, least+(MaxBytes-len(p.s))/2)
	}
	for n := least; n <= most; n++ {
		covered := false
		for _, q := range by {
			if covered = q.covers(p, n); covered {
				break
			}
		}
		if !covered {
			return false
		}
	}
	return true
}

// tokens is how many tokens the shortest name has that p matches; open: longer ones match as well.
func (p Pattern) tokens() (least int, open bool) {
	for rest, more := p.s, true; more; least++ {
		var token string
		token, more = cut(&rest)
		open = p.wildcard && token == tail
	}
	return least, open
}

// covers reports whether p matches every name of n tokens that q matches, of which there are some.
func (p Pattern) covers(q Pattern, n int) bool {
	if p.s == "" {
		return false
	}
	mine, theirs := p.s, q.s
	pt, pmore := cut(&mine)
	qt, _ := cut(&theirs)
	for i := 1; ; i++ {
		switch {
		case pt == tail:
			return true
		case pt != one && pt != qt: // a wildcard of q is matched by wildcards alone
			return false
		case i == n:
			return !pmore
		case !pmore:
			return false
		}
		pt, pmore = cut(&mine)
		if qt != tail { // which stands for all that follows
			qt, _ = cut(&theirs)
		}
	}
}

// Overlaps reports whether a name may exist that both p and q match. It may be too long to be legal: then the answer is still true.
func (p Pattern) Overlaps(q Pattern) bool {
	if p.s == "" || q.s == "" {
		return false
	}
	a, b := p.s, q.s
	for {
		at, amore := cut(&a)
		bt, bmore := cut(&b)
		switch {
		case at == tail || bt == tail:
			return true
		case at != bt && at != one && bt != one:
			return false
		case !amore || !bmore:
			return amore == bmore
		}
	}
}
