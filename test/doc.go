// Package test holds what is tested from outside: the real binary with real
// exporters, kill -9, and the rules of the house. It has no code of its own.
package test
