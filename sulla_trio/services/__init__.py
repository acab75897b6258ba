"""Pure request to reply: DHCP, DNS, leases, events, flows, policy."""
