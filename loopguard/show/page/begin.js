// The page of a file: all that there is to see is in it.

start(JSON.parse(document.getElementById("data").textContent));
