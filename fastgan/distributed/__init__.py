"""The processes of a run: how they meet, agree, exchange and end together, and the engines that train in them."""
