// Command ipfs is Kubo with Basalt built in. Pure Go: it reaches the node through its agent.
package main

import "basalt.dev/go/internal/kubo"

func main() { kubo.Main() }
