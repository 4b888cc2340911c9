// Package etcdtest tests package discovery/etcd, and the servers and clients that use it, against a real etcd. It is a module of its own
// because an etcd inside the tests needs much that nobody who uses Runnel should have in his list of modules:
//
//	cd discovery/etcdtest && go test ./...
package etcdtest
