"""How one kernel is computed: method, form of every layer, tiles; and what that costs."""
